"""Masks as other codecs have them, for the tests of instances."""

import warnings

from pycocotools import mask as coco_mask

from cellkit.cells.instances import Instances

ORDERS = ("row-major", "column-major")


def stacked(masks, **kwargs):
    return Instances.from_masks(masks, masks.shape[1:], **kwargs)


def decoded(rle):
    with warnings.catch_warnings():  # pycocotools 2.0.11 on NumPy 2: __array__ without `copy`
        warnings.simplefilter("ignore", DeprecationWarning)
        return coco_mask.decode(rle)
