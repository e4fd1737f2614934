"""The report: one self-contained page from the files of a run.

It may import `cells`, `config`, `evaluate`, `formats`, `labelling`, `microscope`, `models`, `run`, `scores`, `show`,
`sources` and the ground.
"""
