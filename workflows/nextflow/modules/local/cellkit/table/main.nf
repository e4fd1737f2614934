process CELLKIT_TABLE {
    tag "cells.csv"
    label 'process_single'

    conda "${moduleDir}/environment.yml"
    container "${params.cellkit_container ?: 'cellkit'}"

    input:
    path tables, stageAs: 'tables/*'

    output:
    path "cells.csv", emit: cells
    path "versions.yml", emit: versions

    when:
    task.ext.when == null || task.ext.when

    script:
    """
    #!/usr/bin/env python
    import csv
    from importlib.metadata import version
    from pathlib import Path

    columns, rows = {}, []
    for path in sorted(Path("tables").iterdir()):
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns.update(dict.fromkeys(reader.fieldnames or ()))
            rows += reader
    with open("cells.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(columns))
        writer.writeheader()
        writer.writerows(rows)
    with open("versions.yml", "w", encoding="utf-8") as file:
        print('"${task.process}":', "    cellkit: " + version("cellkit"), sep=chr(10), file=file)
    """

    stub:
    """
    touch cells.csv

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        cellkit: \$(cellkit --version | sed 's/cellkit //')
    END_VERSIONS
    """
}
