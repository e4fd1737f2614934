"""What a Mask R-CNN may be told, whichever library computes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from cellkit.models.shared.contract import SMALLEST, Area, Computed, Diameter, Schedule, Share, SharesCrops, merged
from cellkit.settings import Number

Most = Annotated[int, Field(ge=1, le=100_000)]
Iou = Annotated[Number, Field(gt=0, le=1)]
Inner = Annotated[Number, Field(gt=0, lt=1)]
MASK_NMS = "mask IoU above which the lower score is dropped"
COVERED = "share of a cell in cells of higher scores, above which it is dropped, not trimmed"
MASK_SCORE = "whether the score of a box is multiplied by the mean probability of its mask"
FLIPS = "flips of an image whose boxes, scores and masks are averaged: 1 = as it is, 2 = left to right, too, 4 = up and down, too"
MASK = "mask probability above which a pixel is the cell's"
DEFAULTS = {
    "backbone": "cellpose_unet",
    "shown": "both",
    "diameter_px": None,
    "fpn_channels": 96,
    "freeze_backbone": True,
    "boxes_per_image": 64,
    "max_detections": None,
    "tile_detections": 1000,
    "score_threshold": 0.4,
    "nms_threshold": 0.5,
    "mask_box_margin": 0.1,
    "mask_threshold": 0.5,
    "mask_nms_threshold": 1.0,
    "covered_share": 0.2,
    "mask_score": True,
    "by_line": None,  # class -> what is read otherwise in images most of whose cells are of it
    "flips": 1,
    "min_area_px": 15,
    "precision": "auto",
    "anchor_sizes": None,  # px at network scale, of each level; None = the usual ones of the backbone
    "imagenet": False,  # whether a ResNet is shown what torchvision's were: each colour less its mean, by its deviation
    "widths": None,  # of a U-Net that has not the usual ones
    "texture": False,  # whether the texture of a cell has a vote on its class
    "alone": False,  # whether that of the cell without its surroundings is known, too
}
BEFORE = {  # of cards that do not say
    "mask_nms_threshold": 1.0,
    "covered_share": 1.0,
    "mask_score": False,
    "mask_box_margin": 0.0,
}


class Settings(Computed):
    """What may change from prediction to prediction; null = as the checkpoint's card says."""

    diameter_px: Diameter | None = Field(None, description="cells are scaled to this diameter (px)")
    max_detections: Most | None = Field(
        None, description="most cells found in one image; null = from the densest training image, tile by tile"
    )
    score_threshold: Share | None = Field(None, description="objects scored lower are dropped")
    nms_threshold: Iou | None = Field(None, description="box IoU above which the lower score is dropped")
    mask_threshold: Inner | None = Field(None, description=MASK)
    mask_nms_threshold: Iou | None = Field(None, description=f"{MASK_NMS}; 1 = none is")
    covered_share: Share | None = Field(None, description=f"{COVERED}; 1 = none is")
    mask_score: bool | None = Field(None, description=MASK_SCORE)
    flips: Literal[1, 2, 4] | None = Field(None, description=FLIPS)
    min_area_px: Area | None = Field(None, description=SMALLEST)


class Training(Schedule, Settings, SharesCrops):
    """What a training of any of them may be told."""

    steps: int = Field(400, ge=1, description="most optimiser steps")
    batch_size: int = Field(4, ge=1, description="crops per step")
    crop_px: int = Field(192, ge=32, multiple_of=8, description="height and width of a crop (px)")
    diameter_px: Diameter | None = Field(
        None, description="cells are scaled to this diameter (px); null = from training labels"
    )
    eval_every: int = Field(100, ge=1, description="steps between two scores on validation images")
    fpn_channels: int = Field(96, ge=8, le=512, description="width of the feature pyramid (channels)")
    boxes_per_image: int = Field(64, ge=8, description="boxes per image that train the heads")
    mask_box_margin: Number = Field(
        0.1,
        ge=0,
        le=0.5,
        description="share of its width and height by which a mask reaches beyond its box, on each side; 0 = it ends there",
    )
    cells_per_step: int = Field(48, ge=1, description="cut-outs of cells that train the class in a step")
    score_threshold: Share | None = Field(
        None, description="objects scored lower are dropped; null = best on training images"
    )
    nms_threshold: Iou | None = Field(
        None, description="box IoU above which the lower score is dropped; null = best on training images"
    )
    mask_threshold: Inner | None = Field(None, description=f"{MASK}; null = best on training images")
    mask_nms_threshold: Iou = Field(1.0, description=f"{MASK_NMS}; 1 = none is")
    covered_share: Share = Field(0.2, description=f"{COVERED}; 1 = none is")
    mask_score: bool = Field(True, description=MASK_SCORE)
    flips: Literal[1, 2, 4] = Field(1, description=FLIPS)
    search_by_line: bool = Field(
        False,
        description="thresholds are searched for the images of each class, too: those most of whose cells are of it, at most six",
    )
    min_area_px: Area | None = Field(None, description=f"{SMALLEST}; null = best on training images")
    anchors: Literal["usual", "data"] = Field(
        "usual",
        description="sizes of the boxes that proposals begin from: the backbone's usual ones, or from training labels; a "
        "detector that it starts from keeps its own",
    )
    freeze_backbone: bool = Field(True, description="train the heads only")
    unfreeze_after: Share | None = Field(
        None, description="share of the steps after which a frozen encoder is trained too; null = never"
    )
    keep_overlaps: bool = Field(
        False,
        description="where labelled cells overlap each trains whole; false = a pixel is taught as one cell's",
    )
    ignore_unknown: bool = Field(True, description="objects of unknown class neither train nor punish the class head")


def read_with(settings: Settings | None, card: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a detector is read with: what is set, else what its card says; what is set holds for every class.

    Examples
    --------
    >>> card = {"score_threshold": 0.3, "by_line": {"1": {"score_threshold": 0.2, "min_area_px": 30}}}
    >>> read_with(Settings(score_threshold=0.6), card)["by_line"], read_with(None, {})["mask_score"]
    ({'1': {'min_area_px': 30}}, False)
    """
    used = merged(settings, BEFORE | dict(card), DEFAULTS)
    fixed = {key for key in DEFAULTS if getattr(settings, key, None) is not None}
    lines = (used["by_line"] or {}).items()
    used["by_line"] = {line: {k: v for k, v in own.items() if k not in fixed} for line, own in lines} or None
    return used
