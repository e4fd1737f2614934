process CELLKIT_PREDICT {
    tag "${meta.id}"
    label 'process_medium'

    container 'cellkit'

    input:
    tuple val(meta), path(image)
    val model
    path model_files

    output:
    tuple val(meta), path("${prefix}.json", glob: false), emit: coco, optional: true
    tuple val(meta), path("${prefix}_labels", glob: false), emit: labels, optional: true
    tuple val(meta), path("${prefix}.predict.txt", glob: false), emit: skipped, optional: true
    path "versions.yml", emit: versions

    when:
    task.ext.when == null || task.ext.when

    script:
    def args = task.ext.args ?: ''
    prefix = task.ext.prefix ?: "${meta.id}"
    def quoted = prefix.toString().replace("'", "'\\''")
    """
    export OMP_NUM_THREADS=${task.cpus}
    code=0
    cellkit predict \\
        "${model}" \\
        ${image} \\
        ${args} \\
        -o '${quoted}.json' \\
        --labels '${quoted}_labels' 2> said.txt || code=\$?
    cat said.txt >&2
    case \$code in
        0|3) grep '^skipped: ' said.txt > '${quoted}.predict.txt' || [ \$code = 0 ] ||
             tail -n 2 said.txt > '${quoted}.predict.txt' ;;
        2) grep -q 'none could be used' said.txt || exit 2
           tail -n 2 said.txt > '${quoted}.predict.txt'
           rm -rf '${quoted}.json' '${quoted}_labels' ;;
        *) exit \$code ;;
    esac
    [ -s '${quoted}.predict.txt' ] || rm -f '${quoted}.predict.txt'

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        cellkit: \$(cellkit --version | sed 's/cellkit //')
    END_VERSIONS
    """

    stub:
    prefix = task.ext.prefix ?: "${meta.id}"
    def quoted = prefix.toString().replace("'", "'\\''")
    """
    touch '${quoted}.json'
    mkdir '${quoted}_labels'

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        cellkit: \$(cellkit --version | sed 's/cellkit //')
    END_VERSIONS
    """
}
