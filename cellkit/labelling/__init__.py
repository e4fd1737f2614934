"""Who is where, decided with a person: truth, corrections and proposals become labels, round by round.

It may import `cells`, `formats`, `scores` and the ground.
"""
