"""How good this run is: its predictions against the truth, the gate, one winner, one submission.

It may import `cells`, `formats`, `models`, `scores` and the ground.
"""
