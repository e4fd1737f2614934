process CELLKIT_MEASURE {
    tag "${meta.id}"
    label 'process_single'

    conda "${moduleDir}/environment.yml"
    container "${params.cellkit_container ?: 'cellkit'}"

    input:
    tuple val(meta), path(image), path(coco)

    output:
    tuple val(meta), path("${prefix}.csv"), emit: cells
    path "versions.yml", emit: versions

    when:
    task.ext.when == null || task.ext.when

    script:
    def args = task.ext.args ?: ''
    prefix = task.ext.prefix ?: "${meta.id}"
    """
    cellkit measure \\
        ${image} \\
        ${coco} \\
        ${args} \\
        --allow-skips \\
        -o "${prefix}.csv"

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        cellkit: \$(cellkit --version | sed 's/cellkit //')
    END_VERSIONS
    """

    stub:
    prefix = task.ext.prefix ?: "${meta.id}"
    """
    touch "${prefix}.csv"

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        cellkit: \$(cellkit --version | sed 's/cellkit //')
    END_VERSIONS
    """
}
