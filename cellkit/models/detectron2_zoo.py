"""Weights of detectron2's model zoo: a pickle of arrays, read without running anything of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cellkit.errors import UserError
from cellkit.formats.plain_pickle import read_plain_pickle

PARTS = ("backbone.", "proposal_generator.rpn_head.", "roi_heads.")
FIRST, SHAPE = "backbone.bottom_up.stem.conv1.weight", (64, 3, 7, 7)
REMEDY = "give a Mask R-CNN with a ResNet-50 of detectron2's model zoo, e.g. model_final_f10217.pkl"


def read_zoo(path: Path) -> dict[str, Any]:
    """Return the tensors of a Mask R-CNN with a ResNet-50, by detectron2's names; anchors and the like are left away.

    Source of the layout: facebookresearch/detectron2, detectron2/checkpoint/detection_checkpoint.py @ 02b5c4e2.

    Returns
    -------
    dict of str to torch.Tensor

    Raises
    ------
    UserError
        No such pickle: anything in it that is no plain value or array, or another network.
    """
    import torch

    arrays = read_plain_pickle(path, REMEDY).get("model")
    if not isinstance(arrays, dict):
        raise UserError(f"{path} holds no 'model'", REMEDY)
    kept = {key: value for key, value in arrays.items() if isinstance(key, str) and key.startswith(PARTS)}
    wrong = [key for key, value in kept.items() if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu"]
    if wrong:
        raise UserError(f"{path}: {wrong[0]} is no array of numbers", REMEDY)
    if FIRST not in kept or kept[FIRST].shape != SHAPE:
        raise UserError(f"{path} is no detector with a ResNet-50: it has no {FIRST} of {SHAPE}", REMEDY)
    return {key: torch.from_numpy(np.array(value)) for key, value in sorted(kept.items())}
