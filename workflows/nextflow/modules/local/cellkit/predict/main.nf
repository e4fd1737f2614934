process CELLKIT_PREDICT {
    tag "${meta.id}"
    label 'process_medium'

    conda "${moduleDir}/environment.yml"
    container "${params.cellkit_container ?: 'cellkit'}"

    input:
    tuple val(meta), path(image)
    val model
    path model_files

    output:
    tuple val(meta), path("${prefix}.json"), emit: coco
    tuple val(meta), path("${prefix}_labels"), emit: labels
    path "versions.yml", emit: versions

    when:
    task.ext.when == null || task.ext.when

    script:
    def args = task.ext.args ?: ''
    prefix = task.ext.prefix ?: "${meta.id}"
    """
    export OMP_NUM_THREADS=${task.cpus}
    cellkit predict \\
        "${model}" \\
        ${image} \\
        ${args} \\
        --allow-skips \\
        -o "${prefix}.json" \\
        --labels "${prefix}_labels" 2> said.txt || {
        code=\$?
        cat said.txt >&2
        grep -q 'none could be used' said.txt && exit 65
        exit \$code
    }
    cat said.txt >&2

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        cellkit: \$(cellkit --version | sed 's/cellkit //')
    END_VERSIONS
    """

    stub:
    prefix = task.ext.prefix ?: "${meta.id}"
    """
    touch "${prefix}.json"
    mkdir "${prefix}_labels"

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        cellkit: \$(cellkit --version | sed 's/cellkit //')
    END_VERSIONS
    """
}
