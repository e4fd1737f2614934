#!/usr/bin/env nextflow
// A set of microscope files -> the cells of each, and one table of all. workflows/README.md says how it is called.
nextflow.enable.dsl = 2

include { CELLKIT_PREDICT } from './modules/local/cellkit/predict/main'
include { CELLKIT_MEASURE } from './modules/local/cellkit/measure/main'
include { CELLKIT_TABLE } from './modules/local/cellkit/table/main'

workflow {
    images = Channel
        .fromPath(params.images, checkIfExists: true)
        .map { file -> tuple([id: file.name], file) }
    files = params.model_files ? Channel.fromPath(params.model_files, checkIfExists: true).collect() : Channel.value([])

    CELLKIT_PREDICT(images, params.model, files)
    CELLKIT_MEASURE(images.join(CELLKIT_PREDICT.out.coco, failOnDuplicate: true))
    CELLKIT_TABLE(CELLKIT_MEASURE.out.cells.map { meta, table -> table }.collect(sort: { it.name }))
}
