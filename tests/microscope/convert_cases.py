"""Planes of a few pixels, for the tests of conversion."""

import numpy as np
import tifffile

from cellkit.microscope.file_info import Channel

NUCLEI = np.arange(600, dtype=np.uint16).reshape(20, 30) * 100


def write(path, array, axes, names=None, **options):
    metadata = {"axes": axes} | ({"Channel": {"Name": names}} if names else {})
    tifffile.imwrite(path, array, photometric="minisblack", ome=True, metadata=metadata, **options)
    return path


# ---- a number as name, index or wavelength -------------------------------------------------------------------------


def names(*told):
    return tuple(Channel(*(one if isinstance(one, tuple) else (one,))) for one in told)
