"""Mask R-CNN on torchvision: finds cells, outlines them and says which line each belongs to.

The encoder is the fine-tuned Cellpose U-Net (the adaptation carries over where no other weights can be had) or a ResNet-50.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from cellkit.cells.instances import Instances
from cellkit.finding import opens_again
from cellkit.models.maskrcnn_detect import live_detector
from cellkit.models.maskrcnn_windows import segmenter
from cellkit.models.shared.contract import Segmenter
from cellkit.models.shared.cost import Cost
from cellkit.models.shared.detector_settings import DEFAULTS, Settings, Training  # noqa: F401 - stated by every backend
from cellkit.models.shared.detector_start import TUNED, UNET, check_start, opened, started
from cellkit.models.shared.detector_training import detector_cost, train_detector
from cellkit.models.shared.inputs import CELL_PX  # noqa: F401 - stated by every backend that scales images
from cellkit.models.shared.live import Live
from cellkit.models.shared.processes import check_processes, place, train_shared
from cellkit.models.training import random_state_kept
from cellkit.settings import Number, weights_field

if TYPE_CHECKING:
    from cellkit.cells.dataset import CellDataset

TITLE = "Mask R-CNN"
REQUIRES = ("torch", "torchvision")
BYTES_PER_PX = 110  # of memory, at network scale; measured, 1024 and 2048 px: 101 bytes more a pixel
NAME = "maskrcnn_torchvision"
PUBLISHED = "torchvision"  # what the cards of fetched weights say
LEVELS = {"cellpose_unet": ((4, 8), 3, 5.0), "resnet50_fpn_v2": ((4, 8, 16, 32, 64), 2, 3.0)}  # see `anchor_sizes`


class TrainSettings(Training):
    """Settings of a training."""

    backbone: Literal["cellpose_unet", "resnet50_fpn_v2"] = Field("cellpose_unet", description="image encoder")
    start: str = weights_field(
        TUNED,
        "weights to begin from: tuned = this run's fine-tuned checkpoint, coco = a published detector, RUN:maskrcnn, or a model",
        UNET,
        NAME,
        PUBLISHED,
    )
    box_jitter: Number = Field(
        0.0,
        ge=0,
        le=0.4,
        description="masks train on true boxes too, each side moved by at most this share of the width; 0 = they do not",
    )


# ---- the contract --------------------------------------------------------------------------------------------------
@opens_again
def load(checkpoint: Path, settings: Settings | None = None) -> Segmenter:
    """Return a function from a stream of (H, W, 3) uint8 images to their cells, in order.

    Parameters
    ----------
    checkpoint : Path
        What `train` wrote.
    settings : Settings, optional
        What is None comes from the card.

    Raises
    ------
    UserError
        No checkpoint there, one of another backend, or one of an earlier cellkit.
    """
    from cellkit.models.maskrcnn_network import build

    return segmenter(*opened(checkpoint, settings, NAME, build), BYTES_PER_PX)


def live(checkpoint: Path, settings: Settings | None = None) -> Live:
    """Return the same network, whose thresholds can be moved when it has seen an image; otherwise as `load`."""
    from cellkit.models.maskrcnn_network import build

    return live_detector(*opened(checkpoint, settings, NAME, build), BYTES_PER_PX)


@random_state_kept()
def train(train: CellDataset, val: CellDataset, config: TrainSettings, out: Path) -> Path:
    """Train the detector; whole images of `val` choose the weights by the mean of the classes' MAP IoU.

    Which of them choose, and that none does while there are few, is as in `cellpose_unet.train`.

    Parameters
    ----------
    config : TrainSettings
        ``start`` is a path, or "scratch".
    out : Path
        Folder for the resume state, ``history.csv`` and the checkpoint.

    Returns
    -------
    Path
        ``maskrcnn.safetensors``.

    Raises
    ------
    UserError
        Nothing to train on, no class, or no weights to start from.
    """
    if config.gpus > place()[1]:
        check(config)
        return train_shared(NAME, TrainSettings, train, val, config, out)
    return train_detector(train, val, config, out, NAME, _start, LEVELS, BYTES_PER_PX)


def check(config: TrainSettings) -> None:
    """Refuse what cannot be the start of a detector, as far as its name and card tell; nothing is loaded.

    Parameters
    ----------
    config : TrainSettings
        ``start`` is a path, "scratch", or "tuned" = the Cellpose network that notebook 03 keeps.

    Raises
    ------
    UserError
        Random weights that would stay frozen, an end of a freezing that there is not, weights of another kind of network,
        bfloat16 for a ResNet-50, or more GPUs than there are or can share a batch.
    """
    check_processes(config.gpus, config.batch_size, "maskrcnn.gpus")
    check_start(config, NAME, PUBLISHED)


def _start(config: TrainSettings, settings: dict[str, Any], classes: Sequence[str]) -> Any:
    """Build the detector, put the start weights into it, and note in `settings` what they were trained on."""
    from cellkit.models.maskrcnn_network import build, load_published

    check(config)
    settings |= {"imagenet": config.backbone != UNET, "box_jitter": config.box_jitter}
    return started(config, settings, classes, NAME, build, load_published)


def cost(config: TrainSettings, image: np.ndarray, truth: Instances) -> Cost:
    """Return what a training costs here, timed on an image whose cells are about 30 px wide.

    ``start`` is the path of what the encoder will begin from, or of weights of the same kind.
    """
    return detector_cost(config, image, truth, _start)
