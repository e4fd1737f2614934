"""Measuring in files that do not state their axes: `cellkit measure --axes`."""

import numpy as np
import pandas as pd
import pytest
import tifffile


@pytest.fixture
def folder(tmp_path):
    """raw/a.tif, three planes and no word on what they are; labels/a.tif, two cells."""
    labels = np.zeros((32, 40), np.uint16)
    labels[4:14, 5:15], labels[16:28, 20:35] = 1, 2
    brightest = np.where(labels > 0, 1000 * labels, 100).astype(np.uint16)
    for name, pixels in (("raw", np.stack([brightest // 2, brightest, brightest // 3])), ("labels", labels)):
        (tmp_path / name).mkdir()
        tifffile.imwrite(tmp_path / name / "a.tif", pixels, metadata=None, photometric="minisblack")
    return tmp_path


def test_axes_of_a_file_that_states_none_are_told(said, folder):
    given = ("measure", folder / "raw", folder / "labels", "-o", folder / "cells.csv")
    code, _, err = said(*given)
    assert code == 2 and "axes" in err
    code, out, err = said(*given, "--axes", "ZYX")
    assert code == 0 and "2 cells of 1 image" in out, err
    table = pd.read_csv(folder / "cells.csv")
    (mean,) = (name for name in table.columns if name.startswith("mean_") and "corrected" not in name)
    assert table["area_px"].tolist() == [100, 180]
    assert table[mean].tolist() == [1000, 2000]  # the brightest of the planes


def test_axes_that_do_not_fit_the_file_are_refused(said, folder):
    code, _, err = said("measure", folder / "raw", folder / "labels", "--axes", "YX", "-o", folder / "cells.csv")
    assert code == 2 and "axes" in err
