"""The run folder: what a stage read and wrote, whether it still holds, and the runner of the notebooks.

It may import `cells`, `config`, `evaluate`, `fetch`, `forecast`, `formats`, `labelling`, `microscope`, `models`,
`scores`, `sources` and the ground.
"""
