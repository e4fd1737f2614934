"""What a cell is: instances, labels, run lengths, records, splits, and the one type for images with cells.

Nothing here opens a microscope file, knows a model or a competition; it may import the ground only (errors, files, log,
machine, manifest, modules, parallel, settings, tables).
"""
