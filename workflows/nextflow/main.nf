#!/usr/bin/env nextflow
// A set of microscope files -> the cells of each, and one table of all. workflows/README.md says how it is called.
nextflow.enable.dsl = 2

include { CELLKIT_PREDICT } from './modules/local/cellkit/predict/main'
include { CELLKIT_MEASURE } from './modules/local/cellkit/measure/main'
include { CELLKIT_TABLE } from './modules/local/cellkit/table/main'

// What cellkit reads; an OME-Zarr is a folder.
def isImage(path) {
    def name = path.name.toLowerCase()
    def read = ['.tif', '.tiff', '.png', '.jpg', '.jpeg', '.czi', '.lif', '.nd2', '.zarr'].any { suffix -> name.endsWith(suffix) }
    return read && path.isDirectory() == name.endsWith('.zarr')
}

workflow {
    def named = file(params.images, type: 'any', checkIfExists: true)
    def paths = (named instanceof List ? named : [named]).findAll { path -> !path.name.startsWith('.') }
    def found = paths.findAll { path -> isImage(path) }
    if (paths.size() > found.size()) {
        log.warn "not read, as cellkit reads no such files: ${(paths - found)*.name.join(', ')}"
    }
    if (!found) {
        error "no image in '${params.images}': name microscope files, --images 'FOLDER/*'"
    }
    def stems = found.groupBy { path -> path.name.replaceAll(/(?i)(\.ome)?\.[^.]+$/, '') }
    def same = stems.values().find { group -> group.size() > 1 }
    if (same) {
        error "${same*.name.join(' and ')} would be one image in cells.csv: name them apart, or move one elsewhere"
    }
    images = Channel.fromList(found).map { path -> tuple([id: path.name], path) }
    files = params.model_files ? Channel.fromPath(params.model_files, checkIfExists: true).collect() : Channel.value([])

    CELLKIT_PREDICT(images, params.model, files)
    CELLKIT_MEASURE(images.join(CELLKIT_PREDICT.out.coco, failOnDuplicate: true))
    tables = CELLKIT_MEASURE.out.cells
        .map { meta, table -> table }
        .ifEmpty { error 'no file could be used: see the errors above, and .nextflow.log' }
    CELLKIT_TABLE(tables.collect(sort: { it.name }))
}

workflow.onComplete {
    if (workflow.stats.ignoredCount) {
        log.warn "not in cells.csv: ${workflow.stats.ignoredCount} file(s) that could not be used, named above (Error is ignored)"
    }
}
