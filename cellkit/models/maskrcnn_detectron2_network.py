"""Mask R-CNN for cells out of the parts of detectron2; imported only where detectron2 is installed.

It answers as torchvision's does in `maskrcnn_network`: losses by name while it is trained, else boxes, scores and masks. Nothing
is registered as a data set, no file of the model zoo is read and nothing is unpickled.
Source: facebookresearch/detectron2 @ 02b5c4e2, modeling/meta_arch/rcnn.py, modeling/proposal_generator/rpn.py,
modeling/roi_heads/{roi_heads,mask_head}.py, modeling/poolers.py.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

with warnings.catch_warnings():  # it compiles two functions as torch no longer likes; nothing a user could change
    warnings.simplefilter("ignore")
    from detectron2.config import CfgNode, get_cfg
    from detectron2.modeling import META_ARCH_REGISTRY, Backbone, GeneralizedRCNN, build_model
    from detectron2.modeling.backbone import BACKBONE_REGISTRY
    from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY, RPN
    from detectron2.modeling.proposal_generator.rpn import RPN_HEAD_REGISTRY, StandardRPNHead
    from detectron2.modeling.roi_heads import (
        ROI_HEADS_REGISTRY,
        ROI_MASK_HEAD_REGISTRY,
        MaskRCNNConvUpsampleHead,
        StandardROIHeads,
    )
    from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
    from detectron2.modeling.roi_heads.mask_head import mask_rcnn_inference
    from detectron2.structures import BitMasks, Boxes, ImageList, pairwise_iou
    from detectron2.structures import Instances as Fields
    from detectron2.utils.events import EventStorage

from cellkit.errors import UserError
from cellkit.machine import arithmetic
from cellkit.models import weights
from cellkit.models.cell_classifier import CellClassifier, TextureVote
from cellkit.models.maskrcnn_detect import Capped, most_proposals
from cellkit.models.maskrcnn_detectron2_config import PYRAMIDS, config_keys
from cellkit.models.maskrcnn_flips import flip_boxes, flips_of, mean_boxes, mean_maps, together
from cellkit.models.maskrcnn_network import PROPOSAL_NMS, RARE, TRAIN_NMS, UNLIKELY, unknown_share
from cellkit.models.maskrcnn_pyramid import (
    ENCODED,
    MASK_SIZE,
    MASKS_AT_ONCE,
    STRIDES,
    ClassHead,
    MaskHead,
    MaskPool,
    MaskPredictor,
    UNetPyramid,
    in_parts,
    peaks,
)
from cellkit.models.shared.detector_start import take_over
from cellkit.models.shared.tiles import grown
from cellkit.models.unet_network import WIDTHS, CellposeUNet

logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)  # detectron2 asks torch by a name it warns of

POOLED = (40, 3)  # box side (px) and the level of the U-Net's pyramid it is cut from: 3 has stride 8
NAMES = {"1": "p2", "2": "p3"}  # levels: ours, and what detectron2 calls them
MOSTLY = 0.5  # share of a box that is not annotated, above which it is no background


class UNetBackbone(UNetPyramid, Backbone):
    """The pyramid over the Cellpose U-Net as detectron2 wants a backbone: p2, p3 are trained, half, fine the U-Net's own."""

    def __init__(self, unet: CellposeUNet, channels: int, frozen: bool, shown: str):
        super().__init__(unet, channels, frozen, shown)
        own = [unet.widths[0] + 3, *(2 * width for width in unet.widths[1:])]
        self._out_feature_channels = {"p2": channels, "p3": channels, **dict(zip(ENCODED, own, strict=True))}
        self._out_feature_strides = {"p2": 4, "p3": 8, **dict(zip(ENCODED, STRIDES, strict=True))}
        self._out_features = list(self._out_feature_channels)

    @property
    def size_divisibility(self) -> int:
        """Height and width are multiples of this (px)."""
        return 8

    def forward(self, x: torch.Tensor, encoded: Sequence[torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
        """Map (B, 3, H, W), red, cytoplasm, nuclei, to the levels; `encoded` as for `UNetPyramid`."""
        found = super().forward(x, encoded)
        return {NAMES.get(name, name): level for name, level in found.items()}


class Proposals(RPN):
    """As many proposals as the area of a picture asks for; anchors where nothing is annotated are no background."""

    unknown: Sequence[torch.Tensor | None] = ()
    detections = 0
    _shares: Iterator[torch.Tensor | None] = iter(())

    def forward(self, images, features, gt_instances=None):
        """Return proposals and losses."""
        most = most_proposals(*images.image_sizes[0], self.detections)
        self.pre_nms_topk[False] = self.post_nms_topk[False] = most
        self.nms_thresh = TRAIN_NMS if self.training else PROPOSAL_NMS
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.meshgrid")  # it is called as torch would rather not have it
            proposals, losses = super().forward(images, features, gt_instances)
        if self.training:
            return proposals, losses
        return [one[one.objectness_logits.sigmoid() > UNLIKELY] for one in proposals], losses

    def label_and_sample_anchors(self, anchors, gt_instances):
        """Say which anchors are cells and which are background."""
        every = Boxes.cat(anchors).tensor
        shares = [None if one is None else unknown_share(every, one) for one in self.unknown]
        self._shares = iter(shares or [None] * len(gt_instances))
        return super().label_and_sample_anchors(anchors, gt_instances)

    def _subsample_labels(self, label):
        share = next(self._shares)
        if share is not None:
            label[(label == 0) & (share > MOSTLY)] = -1
        return super()._subsample_labels(label)


class ProposalHead(StandardRPNHead):
    """Once it is trained, of anchors around a place the likeliest alone is proposed."""

    def forward(self, features: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return logits and box deltas of each level."""
        objectness, boxes = super().forward(features)
        return objectness if self.training else [peaks(level) for level in objectness], boxes


class Heads(Capped, StandardROIHeads):
    """Boxes and masks of one class; what the cap cuts is counted, and what is not annotated teaches nothing."""

    unknown: Sequence[torch.Tensor | None] = ()
    mask_margin, flips = 0.0, 1

    @classmethod
    def _init_mask_head(cls, cfg, input_shape):
        own = cfg.clone()
        own.defrost()
        own.MODEL.ROI_HEADS.IN_FEATURES = list(cfg.MODEL.CELLKIT.MASK_FEATURES)
        return super()._init_mask_head(own, input_shape)

    @property
    def score_thresh(self) -> float:
        """Objects scored lower are dropped."""
        return self.box_predictor.test_score_thresh

    @score_thresh.setter
    def score_thresh(self, value: float) -> None:
        self.box_predictor.test_score_thresh = value

    @property
    def nms_thresh(self) -> float:
        """IoU of two boxes above which the lower score is dropped."""
        return self.box_predictor.test_nms_thresh

    @nms_thresh.setter
    def nms_thresh(self, value: float) -> None:
        self.box_predictor.test_nms_thresh = value

    def label_and_sample_proposals(self, proposals, targets):
        """Say which proposals are cells and which are background; those of neither are left out."""
        for k, unknown in enumerate(self.unknown):
            if unknown is not None:
                boxes = proposals[k].proposal_boxes
                known = unknown_share(boxes.tensor, unknown) <= MOSTLY
                if len(targets[k]):
                    known |= pairwise_iou(targets[k].gt_boxes, boxes).max(dim=0).values >= 0.5
                proposals[k] = proposals[k][known]
        return super().label_and_sample_proposals(proposals, targets)

    def _forward_box(self, features, proposals):
        if self.training:
            return super()._forward_box(features, proposals)
        self.count_proposals(map(len, proposals), [one.image_size for one in proposals])
        shape = proposals[0].image_size
        levels = [features[name] for name in self.box_in_features]
        pooled = self.box_pooler(levels, [one.proposal_boxes for one in proposals])
        first = [
            Boxes(one) for one in self.box_predictor.predict_boxes(self.box_predictor(self.box_head(pooled)), proposals)
        ]
        for one in first:
            one.clip(shape)
        flips = [Boxes(one) for one in together([one.tensor for one in first], shape)]
        pooled = self.box_pooler(levels, flips)  # of boxes that fit, not of proposals: a second look costs little
        told, shown = self.box_predictor(self.box_head(pooled)), [Fields(shape, proposal_boxes=one) for one in flips]
        boxes = mean_boxes(self.box_predictor.predict_boxes(told, shown), shape)
        scores = torch.stack(self.box_predictor.predict_probs(told, shown)).mean(dim=0)
        ((found,), _) = fast_rcnn_inference([boxes], [scores], [shape], self.score_thresh, self.nms_thresh, -1)
        return [found[: self.capped(len(found))]]

    def _forward_mask(self, features, instances):
        """Read masks beyond the boxes, and in each flip of a picture; boxes come out as they were."""
        if self.training:
            wider = [grown(one.proposal_boxes.tensor, self.mask_margin) for one in instances]
            pairs = zip(instances, wider, strict=True)
            return super()._forward_mask(features, [_with(one, proposal_boxes=Boxes(boxes)) for one, boxes in pairs])
        (found,) = instances
        wider = grown(found.pred_boxes.tensor, self.mask_margin)
        flips = [flip_boxes(wider, k, found.image_size) for k in range(self.flips)]
        masked = super()._forward_mask(features, [_with(found, pred_boxes=Boxes(boxes)) for boxes in flips])
        return [_with(found, pred_masks=mean_maps([one.pred_masks for one in masked]))]


def _with(fields: Fields, **more: Any) -> Fields:
    return Fields(fields.image_size, **(fields.get_fields() | more))


class Masks(MaskRCNNConvUpsampleHead):
    """detectron2's masks; pixels that are not annotated have no part in the loss."""

    def forward(self, x, instances):
        """Return the loss while it is trained, else the cells with their masks."""
        if not self.training:
            return super().forward(x, instances)
        return {"loss_mask": known_mask_loss(self.layers(x)[:, 0], instances)}


class FineMasks(nn.Module):
    """Masks from the U-Net's finest features, as the engine on torchvision has them (`maskrcnn_pyramid`)."""

    def __init__(self, cfg: Any, input_shape: Mapping[str, Any]):
        super().__init__()
        channels, half, fine = (input_shape[name].channels for name in ("p2", "half", "fine"))
        self.pool, self.head = MaskPool(), MaskHead(half + channels, channels)
        self.predictor = MaskPredictor(channels, fine)

    def forward(self, features: Mapping[str, torch.Tensor], instances: Sequence[Fields]) -> Any:
        """Return the loss while it is trained, else the cells with their masks."""
        boxes = [(one.proposal_boxes if self.training else one.pred_boxes).tensor for one in instances]
        named = {name: features[NAMES.get(name, name)] for name in ("1", "half", "fine")}
        if not any(map(len, boxes)) and not self.training:
            for one in instances:
                one.pred_masks = boxes[0].new_zeros(0, 1, MASK_SIZE, MASK_SIZE)
            return instances
        shapes = [one.image_size for one in instances]

        def logits_of(some: list[torch.Tensor]) -> torch.Tensor:
            return self.predictor(self.head(self.pool(named, some, shapes)))[:, 1:]

        if self.training:
            return {"loss_mask": known_mask_loss(logits_of(boxes)[:, 0], instances)}
        mask_rcnn_inference(torch.cat(in_parts(logits_of, boxes, MASKS_AT_ONCE)), instances)
        return instances


def known_mask_loss(logits: torch.Tensor, instances: Sequence[Fields]) -> torch.Tensor:
    """Return the cross entropy of masks (N, M, M) in the boxes of cells, over the pixels that are annotated.

    Parameters
    ----------
    instances : sequence of detectron2's Instances
        With proposal_boxes, gt_masks, and gt_known where some picture of the batch is not annotated everywhere.
    """
    taught = [one for one in instances if len(one)]
    if not taught:
        return logits.sum() * 0

    def cut(name: str) -> torch.Tensor:
        parts = [one.get(name).crop_and_resize(one.proposal_boxes.tensor, logits.shape[-1]) for one in taught]
        return torch.cat(parts).float()

    each = F.binary_cross_entropy_with_logits(logits, cut("gt_masks"), reduction="none")
    counted = cut("gt_known") if taught[0].has("gt_known") else torch.ones_like(each)
    return (each * counted).sum() / counted.sum().clamp(min=1)


class Detector(GeneralizedRCNN):
    """detectron2's R-CNN with the answers of torchvision's.

    `build` adds ``cell_classifier``, and on a U-Net ``class_head``, which say which line a cell is of.
    """

    def forward(
        self,
        planes: Sequence[torch.Tensor],
        targets: Sequence[Mapping[str, torch.Tensor]] | None = None,
        encoded: Sequence[torch.Tensor] | None = None,
    ) -> Any:
        """Return the losses by name while it is trained, else boxes, scores and masks of the one picture.

        Parameters
        ----------
        planes : sequence of (3, h, w) float32
            Red, cytoplasm, nuclei at network scale; 0 to 1, but for the brightest and darkest hundredth.
        targets : sequence of mappings, optional
            As `maskrcnn_network.target` gives them; for training.
        encoded : sequence of tensors, optional
            What the frozen encoder makes of the pictures, see `maskrcnn_pyramid.UNetPyramid.encode`.
        """
        if not self.training:
            planes = flips_of(*planes, self.roi_heads.flips)
        images = self._images(planes)
        features = self.backbone(images.tensor) if encoded is None else self.backbone(images.tensor, encoded)
        if not self.training:
            proposals, _ = self.proposal_generator(images, features, None)
            found, _ = self.roi_heads(images, features, proposals, None)
            told = [{"boxes": one.pred_boxes.tensor, "scores": one.scores, "masks": one.pred_masks} for one in found]
            if self.class_head is not None:
                every = self.class_head.votes(features, [one["boxes"] for one in told])
                told = [one | {"votes": votes} for one, votes in zip(told, every, strict=True)]
            return told
        wanted, unknown = self._wanted(targets, images)
        self.proposal_generator.unknown = self.roi_heads.unknown = unknown
        with EventStorage(0):  # detectron2 writes numbers down on the way, and stops where it has nowhere to
            proposals, losses = self.proposal_generator(images, features, wanted)
            _, more = self.roi_heads(images, features, proposals, wanted)
        told = {} if self.class_head is None else {"loss_class": self.class_head.loss(features, targets)}
        return losses | more | told

    def _images(self, planes: Sequence[torch.Tensor]) -> ImageList:
        if self.input_format == "BGR":
            planes = [one.flip(0) for one in planes]
        shown = [(one - self.pixel_mean) / self.pixel_std for one in planes]
        return ImageList.from_tensors(shown, self.backbone.size_divisibility)

    @staticmethod
    def _wanted(targets, images: ImageList) -> tuple[list[Fields], list[torch.Tensor | None]]:
        """Return detectron2's targets, and where each picture is not annotated: None = it is everywhere."""
        partly = any("unknown" in one for one in targets)
        wanted = []
        for one, size in zip(targets, images.image_sizes, strict=True):
            fields = Fields(size, gt_boxes=Boxes(one["boxes"]), gt_classes=torch.zeros_like(one["labels"]))
            fields.gt_masks = BitMasks(one["masks"])
            if partly:
                known = ~one["unknown"] if "unknown" in one else one["masks"].new_ones(size, dtype=torch.bool)
                fields.gt_known = BitMasks(known.expand(len(fields), *size))
            wanted.append(fields)
        return wanted, [one.get("unknown") for one in targets]


def _unet_pyramid(cfg: Any, input_shape: Any) -> UNetBackbone:
    own = cfg.MODEL.CELLKIT
    unet = CellposeUNet(widths=tuple(own.WIDTHS))
    unet.arithmetic = arithmetic(own.PRECISION)
    return UNetBackbone(unet, own.CHANNELS, own.FROZEN, own.SHOWN)


def _registered() -> None:
    """Make our parts known to detectron2 by name, once."""
    for registry, name, part in (
        (BACKBONE_REGISTRY, "CellkitUNetPyramid", _unet_pyramid),
        (PROPOSAL_GENERATOR_REGISTRY, "CellkitProposals", Proposals),
        (RPN_HEAD_REGISTRY, "CellkitProposalHead", ProposalHead),
        (ROI_HEADS_REGISTRY, "CellkitHeads", Heads),
        (ROI_MASK_HEAD_REGISTRY, "CellkitMasks", Masks),
        (ROI_MASK_HEAD_REGISTRY, "CellkitFineMasks", FineMasks),
        (META_ARCH_REGISTRY, "CellkitRCNN", Detector),
    ):
        if name not in registry:
            registry._do_register(name, part)


def configuration(settings: Mapping[str, Any]) -> CfgNode:
    """Return detectron2's configuration of these settings, see `build`; every name in it is one of detectron2's or ours."""
    cfg = get_cfg()
    cfg.MODEL.CELLKIT = CfgNode(
        {
            "CHANNELS": settings["fpn_channels"],
            "FROZEN": settings["freeze_backbone"],
            "SHOWN": settings["shown"],
            "WIDTHS": list(settings.get("widths") or WIDTHS),
            "PRECISION": settings["precision"],
            "MASK_FEATURES": list(PYRAMIDS[settings["backbone"]].masks),
        }
    )
    cfg.merge_from_list([part for pair in config_keys(settings).items() for part in pair])
    cfg.MODEL.DEVICE = "cpu"  # where it is built; it is moved afterwards, as every network here
    cfg.INPUT.FORMAT = "RGB" if settings["backbone"] == "cellpose_unet" else "BGR"
    cfg.freeze()
    return cfg


def build(settings: Mapping[str, Any], classes: int) -> Detector:
    """Build the detector with random weights.

    Parameters
    ----------
    settings : mapping
        What `maskrcnn_detectron2_config.config_keys` wants; and shown, precision, max_detections, tile_detections,
        mask_box_margin, and widths of a U-Net that has not the usual ones.
    classes : int
        Known classes: the outputs of the classifier.
    """
    _registered()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = build_model(configuration(settings))
    if settings["backbone"] == "cellpose_unet":
        pooler = model.roi_heads.box_pooler
        pooler.canonical_box_size, pooler.canonical_level = POOLED
    torch.nn.init.constant_(model.roi_heads.box_predictor.cls_score.bias[-1], RARE)
    most = settings["max_detections"] or settings["tile_detections"]
    model.roi_heads.detections_per_img = model.proposal_generator.detections = most
    model.roi_heads.mask_margin, model.roi_heads.flips = settings["mask_box_margin"], settings.get("flips", 1)
    unet = getattr(model.backbone, "unet", None)
    model.class_head = ClassHead(unet.widths, classes) if unet is not None and classes > 1 else None
    model.cell_classifier = CellClassifier(classes)
    model.cell_texture = TextureVote(classes) if settings.get("texture") else None
    model.cell_alone = TextureVote(classes, alone=True) if settings.get("alone") else None
    return model


def load_published(model: Detector, path: Path) -> None:
    """Load detectron2's Mask R-CNN with a ResNet-50, as `cellkit fetch` converted it: heads are taken where they fit.

    Raises
    ------
    UserError
        The checkpoint lacks tensors of the encoder.
    """
    tensors = weights.load_tensors(path)
    state = model.state_dict()
    body = [key for key in state if key.startswith("backbone.bottom_up.")]
    missing = [key for key in body if key not in tensors or tensors[key].shape != state[key].shape]
    if missing:
        raise UserError(
            f"{path} lacks {len(missing)} tensors of a ResNet-50", "give detectron2's mask_rcnn_R_50_FPN_3x"
        )
    take_over(model, tensors, path.name)
