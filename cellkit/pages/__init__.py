"""What a browser shows: the report of a run, one self-contained page; and the page to try a model on, in `app`.

It may import `cells`, `config`, `evaluate`, `fetch`, `forecast`, `formats`, `labelling`, `measure`, `microscope`, `models`,
`predict`, `run`, `scores`, `show`, `sources` and the ground.
"""
