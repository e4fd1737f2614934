"""Pictures: overlays, sheets, charts; every function returns a figure.

It may import `cells`, `microscope`, `models`, `scores`, `sources` and the ground.
"""
