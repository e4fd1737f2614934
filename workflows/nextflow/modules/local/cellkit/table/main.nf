process CELLKIT_TABLE {
    tag "cells.csv"
    label 'process_single'

    container 'cellkit'

    input:
    path tables, stageAs: 'tables/*'
    path skipped, stageAs: 'skipped/*'

    output:
    path "cells.csv", emit: cells
    path "skipped.csv", emit: skipped
    path "versions.yml", emit: versions

    when:
    task.ext.when == null || task.ext.when

    script:
    """
    #!/usr/bin/env python3
    import csv
    import subprocess
    import unicodedata
    from pathlib import Path

    columns, rows, skipped, files = {}, [], [], {}
    for path in sorted(Path("tables").glob("*.csv")):
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns.update(dict.fromkeys(reader.fieldnames or ()))
            rows += (new := list(reader))
        for image in dict.fromkeys(row["image"] for row in new):
            first = files.setdefault(unicodedata.normalize("NFC", image).casefold(), path.stem)
            if first != path.stem:
                raise SystemExit(f"{first} and {path.stem} would both be image '{image}': rename one of them")
    for path in sorted(Path("skipped").glob("*.txt")):
        if reason := " ".join(path.read_text(encoding="utf-8", errors="replace").split()):
            skipped.append((*path.stem.rsplit(".", 1), reason))
    if not columns:
        raise SystemExit("no file could be used" + "".join(f"; {file}: {reason}" for file, _, reason in skipped[:1]))
    with open("cells.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(columns))
        writer.writeheader()
        writer.writerows(rows)
    with open("skipped.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("file", "step", "reason"), *skipped])
    version = subprocess.run(["cellkit", "--version"], check=True, capture_output=True, text=True).stdout.split()[-1]
    with open("versions.yml", "w", encoding="utf-8") as file:
        print('"${task.process}":', f"    cellkit: {version}", sep=chr(10), file=file)
    """

    stub:
    """
    touch cells.csv skipped.csv

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        cellkit: \$(cellkit --version | sed 's/cellkit //')
    END_VERSIONS
    """
}
