#!/usr/bin/env nextflow
// A set of microscope files -> the cells of each, and one table of all. workflows/README.md says how it is called.

include { CELLKIT_PREDICT } from './modules/local/cellkit/predict/main'
include { CELLKIT_MEASURE } from './modules/local/cellkit/measure/main'
include { CELLKIT_TABLE } from './modules/local/cellkit/table/main'

// What cellkit reads; an OME-Zarr is a folder.
def isImage(path) {
    def name = path.name.toLowerCase()
    def read = ['.tif', '.tiff', '.png', '.jpg', '.jpeg', '.czi', '.lif', '.nd2', '.zarr'].any { suffix -> name.endsWith(suffix) }
    return read && path.exists() && path.isDirectory() == name.endsWith('.zarr')
}

// The id that cellkit gives the image of a file; where it adds a mark made of the name, the name.
def idOf(name) {
    def text = java.text.Normalizer.normalize(name, java.text.Normalizer.Form.NFC)
    def plain = text.replaceAll(/(?i)(\.ome)?\.[^.\/]*$/, '').replace(' ', '_')
    return plain ==~ /(?U)(?![-.])[\w.\-]+(?<![-.])/ ? plain : text
}

// An option without a value arrives as true; so does one whose value is empty, or begins with - and has no blank.
def checkParams(given) {
    def known = ['images', 'model', 'model_files', 'channels', 'outdir', 'cellkit_container', 'cellkit_conda']
    def others = given.keySet().findAll { name -> !(name in known) }
    if (others) {
        log.warn "no parameters of this workflow: ${others.join(', ')}; there are ${known.join(', ')}"
    }
    if (given.images == null || given.images.toString() in ['', 'true']) {
        error "no images are named: --images 'FOLDER/*'"
    }
    if (given.model == null || given.model.toString() in ['', 'true']) {
        error "--model has no value: name one, such as starter, or leave the option out"
    }
    if (given.channels.toString() in ['true', 'false']) {
        error "--channels has no value, or one without a blank: write --channels '--nuclei DAPI', or leave the option out"
    }
}

// Refuses two files that would be one image in the table, and names that the shell of a task would read as something else.
def checkNames(paths) {
    def odd = paths.find { path -> path.toString() =~ /[*?\[\]{}$\p{Cntrl}]/ || path.name.startsWith('-') }
    if (odd) {
        error "'${odd}': no name may hold * ? [ ] { } \$ or begin with -, as another file could be taken for it: rename it"
    }
    def same = paths.groupBy { path -> idOf(path.name).toUpperCase().toLowerCase() }.values().find { group -> group.size() > 1 }
    if (same) {
        def ids = same.collect { path -> idOf(path.name) }.unique()
        def how = ids.size() == 1 ? 'would both be' : 'differ in upper and lower case only:'
        error "${same.take(2).collect { path -> path.toString() }.join(' and ')} ${how} image '${ids.last()}': rename one of them"
    }
}

workflow {
    checkParams(params)
    def paths = files(params.images.toString(), type: 'any').findAll { path -> !path.name.startsWith('.') }
    def found = paths.findAll { path -> isImage(path) }
    if (paths.size() > found.size()) {
        def others = (paths - found).collect { path -> path.name }
        log.warn "not read, as cellkit reads no such files: ${others.join(', ')}"
    }
    if (!found) {
        error "no image in '${params.images}': name microscope files, --images 'FOLDER/*'"
    }
    checkNames(found)
    images = channel.fromList(found).map { path -> tuple([id: path.name], path) }
    model_files = params.model_files ? channel.fromPath(params.model_files, checkIfExists: true).collect() : channel.value([])

    CELLKIT_PREDICT(images, params.model, model_files)
    CELLKIT_MEASURE(images.join(CELLKIT_PREDICT.out.coco, failOnDuplicate: true))
    tables = CELLKIT_MEASURE.out.cells.map { _meta, table -> table }
    skipped = CELLKIT_PREDICT.out.skipped.mix(CELLKIT_MEASURE.out.skipped).map { _meta, reasons -> reasons }
    skipped.subscribe { reasons -> log.warn "skipped, wholly or in part: ${reasons.baseName}: ${reasons.text.trim()}" }
    CELLKIT_TABLE(
        tables.collect(sort: { table -> table.name }).ifEmpty([]),
        skipped.collect(sort: { reasons -> reasons.name }).ifEmpty([]),
    )
}
