"""The settings of a Mask R-CNN as detectron2's configuration knows them; detectron2 itself is not needed here.

Names and meanings: facebookresearch/detectron2, detectron2/config/defaults.py @ 02b5c4e2; what a COCO model has:
configs/Base-RCNN-FPN.yaml and configs/COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

RATIOS = (0.5, 1.0, 2.0)
COCO_MEAN = (103.53, 116.28, 123.675)  # blue, green, red, of 0 to 255: what its ResNet-50 was trained with


class Pyramid(NamedTuple):
    """The levels of a feature pyramid, by detectron2's names: p2 has stride 4; "half" and "fine" are a U-Net's own features.

    Attributes
    ----------
    anchors, boxes, masks : tuple of str
        Levels that have anchors, and that boxes and masks are cut from.
    strides : tuple of int
        Of those with anchors (px).
    count : int
        Anchor sizes of a level.
    least : float
        As `shared.detector_anchors.anchor_sizes` wants it.
    usual : tuple of tuples of float
        Anchor sizes where none are given (px).
    """

    anchors: tuple[str, ...]
    boxes: tuple[str, ...]
    masks: tuple[str, ...]
    strides: tuple[int, ...]
    count: int
    least: float
    usual: tuple[tuple[float, ...], ...]


PYRAMIDS = {
    "cellpose_unet": Pyramid(
        ("p2", "p3"), ("p2", "p3"), ("p2", "half", "fine"), (4, 8), 3, 5.0, ((12, 24, 36), (48, 72, 108))
    ),
    "resnet50_fpn": Pyramid(
        ("p2", "p3", "p4", "p5", "p6"),
        ("p2", "p3", "p4", "p5"),
        ("p2", "p3", "p4", "p5"),
        (4, 8, 16, 32, 64),
        1,
        3.0,
        ((16,), (32,), (64,), (128,), (256,)),
    ),
}


def config_keys(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return detectron2's configuration, by dotted names: what differs from its defaults, and why.

    A cell has one class: which line it is of, a classifier of its own says. So boxes and masks are of one class. Detections are
    not cut by detectron2 (its default keeps 100), but by our heads, which count what they cut. Proposals never run out
    before the detections do, see `maskrcnn_detect.most_proposals`.

    Parameters
    ----------
    settings : mapping
        backbone, fpn_channels, freeze_backbone, boxes_per_image, score_threshold, nms_threshold, and, where they are known,
        anchor_sizes and norm.

    Examples
    --------
    >>> keys = config_keys({"backbone": "resnet50_fpn", "fpn_channels": 96, "freeze_backbone": False, "boxes_per_image": 64,
    ...                     "score_threshold": 0.5, "nms_threshold": 0.5})
    >>> keys["TEST.DETECTIONS_PER_IMAGE"], keys["MODEL.ROI_HEADS.NUM_CLASSES"], keys["MODEL.FPN.OUT_CHANNELS"]
    (-1, 1, 256)
    """
    backbone = settings["backbone"]
    levels = PYRAMIDS[backbone]
    sizes = settings.get("anchor_sizes") or levels.usual
    keys: dict[str, Any] = {
        "MODEL.META_ARCHITECTURE": "CellkitRCNN",
        "MODEL.MASK_ON": True,
        "MODEL.ANCHOR_GENERATOR.SIZES": [list(map(float, level)) for level in sizes],
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [list(RATIOS)],
        "MODEL.PROPOSAL_GENERATOR.NAME": "CellkitProposals",
        "MODEL.RPN.HEAD_NAME": "CellkitProposalHead",
        "MODEL.RPN.IN_FEATURES": list(levels.anchors),
        "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 400,
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": 250,
        "MODEL.ROI_HEADS.NAME": "CellkitHeads",
        "MODEL.ROI_HEADS.NUM_CLASSES": 1,
        "MODEL.ROI_HEADS.IN_FEATURES": list(levels.boxes),
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": settings["boxes_per_image"],
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": float(settings["score_threshold"]),
        "MODEL.ROI_HEADS.NMS_THRESH_TEST": float(settings["nms_threshold"]),
        "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
        "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
        "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
        "TEST.DETECTIONS_PER_IMAGE": -1,
    }
    if backbone == "cellpose_unet":
        return keys | {
            "MODEL.BACKBONE.NAME": "CellkitUNetPyramid",
            "MODEL.PIXEL_MEAN": [0.0, 0.0, 0.0],
            "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
            "MODEL.ROI_BOX_HEAD.FC_DIM": 512,
            "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 1,
            "MODEL.ROI_MASK_HEAD.NAME": "CellkitFineMasks",
            "MODEL.ROI_MASK_HEAD.POOLER_TYPE": "",  # it cuts the boxes out by itself
        }
    norm = settings.get("norm") or "FrozenBN"
    return keys | {
        "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
        "MODEL.BACKBONE.FREEZE_AT": 5 if settings["freeze_backbone"] else 0 if norm == "BN" else 2,
        "MODEL.RESNETS.DEPTH": 50,
        "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
        "MODEL.RESNETS.NORM": norm,
        "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
        "MODEL.FPN.OUT_CHANNELS": 256,
        "MODEL.PIXEL_MEAN": [mean / 255 for mean in COCO_MEAN],
        "MODEL.PIXEL_STD": [1 / 255] * 3,
        "MODEL.ROI_BOX_HEAD.FC_DIM": 1024,
        "MODEL.ROI_MASK_HEAD.NAME": "CellkitMasks",
        "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
        "MODEL.ROI_MASK_HEAD.CONV_DIM": 256,
    }
