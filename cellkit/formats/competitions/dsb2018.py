"""2018 Data Science Bowl: nuclei (Kaggle 2018)."""

COLUMNS = ("ImageId", "EncodedPixels")
PIXEL_ORDER = "column-major"
TRUTH_COLUMNS = ("encodedpixels",)
