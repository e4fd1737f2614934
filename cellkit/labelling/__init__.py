"""Labels, made with a person: truth, corrections and proposals become the labels of a run, round by round.

It may import `cells`, `formats`, `microscope`, `models`, `scores`, `sources` and the ground.
"""
