process CELLKIT_MEASURE {
    tag "${meta.id}"
    label 'process_single'

    container 'cellkit'

    input:
    tuple val(meta), path(image), path(coco)

    output:
    tuple val(meta), path("${prefix}.csv", glob: false), emit: cells, optional: true
    tuple val(meta), path("${prefix}.measure.txt", glob: false), emit: skipped, optional: true
    path "versions.yml", emit: versions

    when:
    task.ext.when == null || task.ext.when

    script:
    def args = task.ext.args ?: ''
    prefix = task.ext.prefix ?: "${meta.id}"
    def quoted = prefix.toString().replace("'", "'\\''")
    """
    code=0
    cellkit measure \\
        ${image} \\
        ${coco} \\
        ${args} \\
        -o '${quoted}.csv' 2> said.txt || code=\$?
    cat said.txt >&2
    case \$code in
        0|3) grep '^skipped: ' said.txt > '${quoted}.measure.txt' || [ \$code = 0 ] ||
             tail -n 2 said.txt > '${quoted}.measure.txt' ;;
        2) grep -qE 'none could be (used|measured)' said.txt || exit 2
           tail -n 2 said.txt > '${quoted}.measure.txt'
           rm -f '${quoted}.csv' ;;
        *) exit \$code ;;
    esac
    [ -s '${quoted}.measure.txt' ] || rm -f '${quoted}.measure.txt'

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        cellkit: \$(cellkit --version | sed 's/cellkit //')
    END_VERSIONS
    """

    stub:
    prefix = task.ext.prefix ?: "${meta.id}"
    def quoted = prefix.toString().replace("'", "'\\''")
    """
    touch '${quoted}.csv'

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        cellkit: \$(cellkit --version | sed 's/cellkit //')
    END_VERSIONS
    """
}
