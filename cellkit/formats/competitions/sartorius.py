"""Sartorius, cell instance segmentation (Kaggle 2021).

Its page says column-major; a file written so scored 0.000, and its own train.csv is row-major.
"""

COLUMNS = ("id", "predicted")
PIXEL_ORDER = "row-major"
TRUTH_COLUMNS = ("annotation", "predicted")  # the pixels of a cell, in the competition's own table of truth
