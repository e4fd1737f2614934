"""Mask R-CNN on torchvision: finds cells, outlines them and says which line each belongs to.

The encoder is the fine-tuned Cellpose U-Net (the adaptation carries over where no other weights can be had) or a ResNet-50.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from cellkit.cells.instances import Instances
from cellkit.errors import UserError
from cellkit.machine import arithmetic
from cellkit.models.maskrcnn_detect import detect_image
from cellkit.models.shared.contract import Segmenter, merged
from cellkit.models.shared.cost import Cost
from cellkit.models.shared.detector_settings import DEFAULTS, Settings, Training
from cellkit.models.shared.detector_training import detector_cost, train_detector
from cellkit.models.shared.inputs import bytes_for
from cellkit.models.training import random_state_kept
from cellkit.settings import weights_field

if TYPE_CHECKING:
    from cellkit.cells.dataset import CellDataset

TITLE = "Mask R-CNN"
REQUIRES = ("torch", "torchvision")
BYTES_PER_PX = 110  # of memory, at network scale; measured, 1024 and 2048 px: 101 bytes more a pixel
NAME = "maskrcnn_torchvision"
SCRATCH, TUNED, UNET = "scratch", "tuned", "cellpose_unet"


class TrainSettings(Training):
    """Settings of a training."""

    backbone: Literal["cellpose_unet", "resnet50_fpn_v2"] = Field("cellpose_unet", description="image encoder")
    start: str = weights_field(
        TUNED, "encoder weights: tuned = this run's fine-tuned checkpoint, or a model", UNET, NAME, "torchvision"
    )


# ---- the contract --------------------------------------------------------------------------------------------------
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
    from cellkit.models import weights
    from cellkit.models.maskrcnn_network import build

    card = weights.card_for(checkpoint, NAME)
    used = merged(settings, card.config, DEFAULTS)
    used |= {k: card.config[k] for k in ("backbone", "shown", "fpn_channels")}
    model = build(used | {"widths": card.config.get("widths")}, len(card.classes))
    tensors = weights.load_tensors(checkpoint)
    if tensors.keys() != model.state_dict().keys():
        raise UserError(
            f"{checkpoint} is a detector that an earlier cellkit built in another way", "train it again (05)"
        )
    model.load_state_dict(tensors)
    model = model.to(arithmetic().device).eval()

    def find(image: np.ndarray, left_out: Counter[str]) -> Instances:
        return detect_image(model, image, used, left_out)

    return Segmenter(find, used, lambda shape: bytes_for(shape, used["diameter_px"], BYTES_PER_PX))


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
    return train_detector(train, val, config, out, NAME, _start, BYTES_PER_PX)


def check(config: TrainSettings) -> None:
    """Refuse what cannot be the start of an encoder, as far as its name and card tell; nothing is loaded.

    Parameters
    ----------
    config : TrainSettings
        ``start`` is a path, "scratch", or "tuned" = the Cellpose network that notebook 03 keeps.

    Raises
    ------
    UserError
        Random weights that would stay frozen, an end of a freezing that there is not, weights of another kind of network, or
        bfloat16 for a ResNet-50.
    """
    from cellkit.models import weights

    start, backbone = config.start, config.backbone
    other = "set maskrcnn.start to weights of a ResNet-50, or scratch, or maskrcnn.backbone: cellpose_unet"
    if start == SCRATCH and backbone == UNET and config.freeze_backbone:
        raise UserError("maskrcnn.start is scratch and freeze_backbone is true", "set maskrcnn.freeze_backbone: false")
    if config.unfreeze_after is not None and not (config.freeze_backbone and backbone == UNET):
        raise UserError(
            f"maskrcnn.unfreeze_after is {config.unfreeze_after:g}, and the encoder is not frozen before",
            "leave unfreeze_after empty, or set freeze_backbone: true and backbone: cellpose_unet",
        )
    if start == TUNED and backbone != UNET:
        raise UserError(f"maskrcnn.start is tuned, a Cellpose network, and maskrcnn.backbone is {backbone}", other)
    if config.precision == "bfloat16" and backbone != UNET:
        raise UserError(
            f"maskrcnn.precision is bfloat16, and {backbone} computes in float32", "set it to auto or float32"
        )
    if Path(start).suffix == ".safetensors":
        if backbone == UNET:
            weights.card_for(start, UNET)
        elif (made_by := weights.read_card(start).backend) not in (NAME, "torchvision"):
            raise UserError(f"maskrcnn.start is weights of {made_by}, and maskrcnn.backbone is {backbone}", other)


def _start(config: TrainSettings, settings: dict[str, Any], classes: int) -> Any:
    """Build the detector, put the start weights into its encoder, and note in `settings` what that was trained on."""
    import torch

    from cellkit.models.maskrcnn_network import build, load_encoder
    from cellkit.models.unet_network import load_network

    check(config)
    network = None
    settings["precision"] = config.precision if config.backbone == UNET else "float32"
    if settings["backbone"] == UNET and config.start != SCRATCH:
        network, card = load_network(config.start)
        settings |= {"shown": card.get("channels", "both"), **network.config}
    torch.manual_seed(config.seed)
    model = build(settings, classes)
    if config.unfreeze_after is not None:  # its parameters belong to the training, without gradients at first
        model.backbone.train_unet(True)
    if network is not None:
        model.backbone.unet.load_state_dict(network.state_dict())
    elif config.start != SCRATCH:
        load_encoder(model, Path(config.start))
    return model.to(arithmetic().device)


def cost(config: TrainSettings, image: np.ndarray, truth: Instances) -> Cost:
    """Return what a training costs here, timed on an image whose cells are about 30 px wide.

    ``start`` is the path of what the encoder will begin from, or of weights of the same kind.
    """
    return detector_cost(config, image, truth, _start)
