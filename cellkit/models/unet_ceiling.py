"""What no training of the U-Net beats: the labels, turned into its targets and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cellkit.models.shared.contract import merged
from cellkit.models.shared.fine_tuning import map_iou, refuse_small
from cellkit.models.shared.flow_loss import prepare
from cellkit.models.shared.flows import masks_of
from cellkit.models.shared.inputs import NORMALISE
from cellkit.models.shared.thresholds import AS_CELLPOSE
from cellkit.models.unet_batches import scaled_by, uncalibrated

if TYPE_CHECKING:
    from cellkit.cells.dataset import CellDataset


def ceiling(labelled: CellDataset, config: Any, most: int = 4) -> float:
    """Return MAP IoU (kaggle) of decode(encode(labels)) against the labels, on up to `most` images: what no training beats.

    Encoding and decoding are those of training and prediction: to network scale, to flows, along the flows, and back.
    """
    from cellkit.models.unet_network import cell_px_of

    read_with, pairs = uncalibrated(labelled, config), []
    settings = merged(config, {"min_area_px": read_with["min_area_px"]}, AS_CELLPOSE)
    cell_px = cell_px_of(config.base)
    if config.min_area_px is not None:
        refuse_small(labelled, config.min_area_px, "finetune.min_area_px")
    some = labelled.sample(most)
    for image, truth in (some[k] for k in range(len(some))):
        maps = prepare(
            image, truth, scaled_by(truth, read_with), None, config.channels, NORMALISE, cell_px
        ).target.copy()
        maps[2] = np.where(maps[2] > 0, 6, -6)
        pairs.append((truth, masks_of(maps, truth.shape, **settings)))
    return map_iou(pairs)
