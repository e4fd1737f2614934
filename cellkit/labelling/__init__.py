"""Who is where, decided with a person: truth, corrections and proposals become labels, round by round.

It may import `cells`, `formats`, `microscope`, `models`, `scores`, `sources` and the ground.
"""
