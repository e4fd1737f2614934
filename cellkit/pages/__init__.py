"""The report: one self-contained page from the files of a run.

It may import `cells`, `config`, `formats`, `labelling`, `models`, `predict`, `run`, `scores`, `show`, `sources` and the
ground.
"""
