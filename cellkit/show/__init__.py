"""Pictures: overlays, sheets, charts; every function returns a figure.

It may import `cells`, `microscope`, `scores`, `sources` and the ground.
"""
