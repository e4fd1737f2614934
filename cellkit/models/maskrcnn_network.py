"""Mask R-CNN for cells: torchvision's proposals, boxes and masks on the U-Net's features or on a ResNet-50.

What differs from torchvision's defaults, and why: a cell has one class, so proposals, boxes, suppression and masks know only
"cell", and the class comes from a classifier beside them (`cell_classifier`), which cells of unknown class do not train; heads
are narrow; detections are capped far above 100, and proposals so that they do not run out before.
Source of the architecture: He, Gkioxari, Dollar, Girshick, "Mask R-CNN", 2017; torchvision/models/detection (0.29).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops import boxes as box_ops

from cellkit.cells.instances import Instances
from cellkit.errors import UserError
from cellkit.machine import arithmetic
from cellkit.models import weights
from cellkit.models.cell_classifier import CellClassifier, TextureVote
from cellkit.models.maskrcnn_detect import PROPOSALS, Capped, most_proposals
from cellkit.models.maskrcnn_flips import flip_boxes, flips_of, mean_boxes, mean_maps, together
from cellkit.models.maskrcnn_pyramid import (
    MASKS_AT_ONCE,
    ClassHead,
    MaskHead,
    MaskPool,
    MaskPredictor,
    UNetPyramid,
    in_parts,
    masks_in_boxes,
    peaks,
)
from cellkit.models.shared.detector_start import take_over
from cellkit.models.shared.overlapping_cells import NOBODY, cells_in
from cellkit.models.shared.tiles import grown
from cellkit.models.unet_network import WIDTHS, CellposeUNet

RATIOS = (0.5, 1.0, 2.0)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # means and deviations of torchvision's ResNets
LEAST_PX = 8  # of a cell at network scale
RARE = 2.0  # logit by which a detector that has learned nothing yet finds no cell
TRAIN_NMS, PROPOSAL_NMS = (
    0.75,
    0.6,
)  # IoU above which the less likely of two proposals is dropped: in training, and after
UNLIKELY = 0.05  # probability below which a proposal is not looked at


def unknown_share(boxes: torch.Tensor, unknown: torch.Tensor) -> torch.Tensor:
    """Return which share of each box, as far as it lies in the picture, is not annotated.

    Parameters
    ----------
    boxes : (N, 4) float
        Left, top, right, bottom in px, taken to whole ones.
    unknown : (H, W) bool

    Returns
    -------
    (N,) float32
        0 of a box of no pixel.
    """
    total = F.pad(unknown.float().cumsum(0).cumsum(1), (1, 0, 1, 0))
    left, right = (boxes[:, k].round().clamp(0, unknown.shape[1]).long() for k in (0, 2))
    top, bottom = (boxes[:, k].round().clamp(0, unknown.shape[0]).long() for k in (1, 3))
    inside = total[bottom, right] - total[top, right] - total[bottom, left] + total[top, left]
    return inside / ((right - left) * (bottom - top)).clamp(min=1)


def _no_background(labels: torch.Tensor, boxes: torch.Tensor, target: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return labels in which boxes of no cell that lie mostly where nothing is annotated are -1: torchvision leaves them out.

    Detectron did so with proposals of which 0.7 lay in a crowd region of COCO (``TRAIN.CROWD_FILTER_THRESH``).
    """
    if "unknown" not in target:
        return labels
    return torch.where((labels == 0) & (unknown_share(boxes, target["unknown"]) > 0.5), -1, labels)


def box_iou(boxes: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Return the IoU, (N, M), of boxes (N, 4) and others (M, 4), xyxy: torchvision's, in a third of the time on a processor.

    Examples
    --------
    >>> box_iou(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[1.0, 0, 3, 2], [5, 5, 6, 6]]))
    tensor([[0.3333, 0.0000]])
    """
    left, top, right, bottom = (side[:, None] for side in boxes.unbind(1))
    x0, y0, x1, y1 = (side.contiguous()[None] for side in others.unbind(1))
    shared = (torch.minimum(right, x1) - torch.maximum(left, x0)).clamp_(min=0)
    shared *= (torch.minimum(bottom, y1) - torch.maximum(top, y0)).clamp_(min=0)
    return shared / ((right - left) * (bottom - top) + (x1 - x0) * (y1 - y0) - shared)


class _Proposals(RegionProposalNetwork):
    """Proposals from the named levels only: a pixel of the finest level is too small to hold a cell.

    Anchors that lie mostly where nothing is annotated are no background.
    """

    levels: tuple[str, ...] = ()
    detections = 0

    def forward(self, images, features, targets=None):
        most = most_proposals(*images.tensors.shape[-2:], self.detections)
        self._pre_nms_top_n["testing"] = self._post_nms_top_n["testing"] = most
        self.score_thresh = 0.0 if self.training else UNLIKELY
        self.nms_thresh = TRAIN_NMS if self.training else PROPOSAL_NMS
        return super().forward(images, OrderedDict((k, features[k]) for k in self.levels), targets)

    def assign_targets_to_anchors(self, anchors, targets):
        labels, boxes = super().assign_targets_to_anchors(anchors, targets)
        return [_no_background(*one) for one in zip(labels, anchors, targets, strict=True)], boxes


class _ProposalHead(RPNHead):
    """Once it is trained, of anchors around a place the likeliest alone is proposed."""

    def forward(self, x: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        objectness, boxes = super().forward(x)
        return objectness if self.training else [peaks(level) for level in objectness], boxes


class _Predictor(nn.Module):
    """Background or cell; one box."""

    def __init__(self, inputs: int):
        super().__init__()
        self.cls_score, self.bbox_pred = nn.Linear(inputs, 2), nn.Linear(inputs, 4)
        nn.init.constant_(self.cls_score.bias[0], RARE)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.cls_score(x), self.bbox_pred(x).repeat(1, 2)


class _MaskPredictor(nn.Module):
    """One mask per cell."""

    def __init__(self, channels: int):
        super().__init__()
        self.up, self.last = nn.ConvTranspose2d(channels, channels, 2, 2), nn.Conv2d(channels, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(F.relu(self.up(x))).expand(-1, 2, -1, -1)


class _Heads(Capped, RoIHeads):
    """The score is the probability of being a cell; what the cap cuts is counted.

    Where something is not annotated, proposals that lie mostly there are no background, and its pixels have no part in the
    loss of the masks.
    """

    box_jitter, mask_margin, flips = 0.0, 0.0, 1
    targets: Sequence[Mapping[str, torch.Tensor]] = ()

    def forward(self, features, proposals, image_shapes, targets=None):
        self.targets = targets or ()
        if not self.training:
            return self._found(features, proposals, image_shapes), {}
        proposals, matched, labels, offsets = self.select_training_samples(proposals, targets)
        logits, deltas = self.box_predictor(self.box_head(self.box_roi_pool(features, proposals, image_shapes)))
        losses = dict(
            zip(("loss_classifier", "loss_box_reg"), fastrcnn_loss(logits, deltas, labels, offsets), strict=True)
        )
        cells = [torch.where(one > 0)[0] for one in labels]
        boxes, matched = ([one[k] for one, k in zip(part, cells, strict=True)] for part in (proposals, matched))
        if self.box_jitter:
            boxes = [torch.cat([a, jittered(b["boxes"], self.box_jitter)]) for a, b in zip(boxes, targets, strict=True)]
            every = [torch.arange(len(one["boxes"]), device=one["boxes"].device) for one in targets]
            matched = [torch.cat(pair) for pair in zip(matched, every, strict=True)]
        boxes = [grown(one, self.mask_margin) for one in boxes]
        logits = self._mask_logits(features, boxes, image_shapes)[:, 0]
        return [], losses | {"loss_mask": _known_mask_loss(logits, boxes, matched, targets)}

    def _mask_logits(self, features, boxes, image_shapes) -> torch.Tensor:
        return self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes, image_shapes)))[:, 1:]

    def _found(self, features, proposals, image_shapes) -> list[dict[str, torch.Tensor]]:
        """Return boxes, scores and masks of a picture that comes in one or more flips."""
        self.count_proposals(map(len, proposals), image_shapes)
        shape = image_shapes[0]

        def told(some: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
            return self.box_predictor(self.box_head(self.box_roi_pool(features, some, image_shapes)))

        first = self._decoded(told(proposals)[1], proposals)
        proposals = together([box_ops.clip_boxes_to_image(one, shape) for one in first], shape)
        logits, deltas = told(proposals)  # of boxes that fit, not of proposals: a second look costs little
        boxes, scores, labels = self.postprocess_detections(logits, deltas, proposals, image_shapes)

        def masks_of(some: list[torch.Tensor]) -> torch.Tensor:
            wider = grown(some[0], self.mask_margin)
            flips = [flip_boxes(wider, k, shape) for k in range(len(proposals))]
            return mean_maps(self._mask_logits(features, flips, image_shapes).sigmoid().chunk(len(flips)))

        found = zip(boxes, scores, labels, in_parts(masks_of, boxes, MASKS_AT_ONCE), strict=True)
        return [dict(zip(("boxes", "scores", "labels", "masks"), one, strict=True)) for one in found]

    def assign_targets_to_proposals(self, proposals, gt_boxes, gt_labels):
        matched, labels = super().assign_targets_to_proposals(proposals, gt_boxes, gt_labels)
        return matched, [_no_background(*one) for one in zip(labels, proposals, self.targets, strict=True)]

    def postprocess_detections(self, class_logits, box_regression, proposals, image_shapes):
        boxes = self._decoded(box_regression, proposals)
        scores = F.softmax(class_logits, -1)[:, 1].split([len(one) for one in proposals])
        shape = image_shapes[0]
        found = self._of_image(mean_boxes(boxes, shape), torch.stack(scores).mean(dim=0), shape)
        return tuple([one] for one in found)

    def _decoded(self, deltas, proposals) -> tuple[torch.Tensor, ...]:
        """Return the boxes (N, 4) of each picture, of a picture without proposals, too: torchvision's lose their shape."""
        boxes = self.box_coder.decode(deltas, proposals)[:, 0].reshape(-1, 4)
        return boxes.split([len(one) for one in proposals])

    def _of_image(self, boxes, scores, shape):
        """Return what may be a cell, best first; what the cap cuts is counted."""
        boxes = box_ops.clip_boxes_to_image(boxes, shape)
        kept = torch.where(scores > self.score_thresh)[0]
        kept = kept[box_ops.remove_small_boxes(boxes[kept], min_size=1.0)]
        kept = kept[box_ops.nms(boxes[kept], scores[kept], self.nms_thresh)]
        kept = kept[: self.capped(len(kept))]
        return boxes[kept], scores[kept], torch.ones_like(kept)


def jittered(boxes: torch.Tensor, share: float) -> torch.Tensor:
    """Return boxes (N, 4) xyxy whose sides are moved at random, each by at most a share of the width or height.

    Masks that are trained on such boxes of true cells, too, can stand a box that is not exact. Source of the idea: BoxJitter of
    the first place of Kaggle's Sartorius competition (tascj, 2021).
    """
    size = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    return boxes + share * size * (2 * torch.rand_like(boxes) - 1)


def _known_mask_loss(logits: torch.Tensor, boxes, matched, targets) -> torch.Tensor:
    """Return the cross entropy of masks (N, M, M) in the boxes of cells, over the pixels that are annotated."""
    size, wanted, known = logits.shape[-1], [], []
    for box, which, one in zip(boxes, matched, targets, strict=True):
        wanted.append(masks_in_boxes(one["masks"], box, which, size))
        annotated = 1 - one["unknown"].float() if "unknown" in one else box.new_ones(one["masks"].shape[1:])
        known.append(masks_in_boxes(annotated[None], box, torch.zeros_like(which), size))
    each = F.binary_cross_entropy_with_logits(logits, torch.cat(wanted), reduction="none")
    counted = torch.cat(known)
    return (each * counted).sum() / counted.sum().clamp(min=1e-6)


class CellRCNN(MaskRCNN):
    """torchvision's, of images at network scale, normalised and of one size, whose features may be known already."""

    def forward(
        self, images: Sequence[torch.Tensor], targets: list | None = None, encoded: Sequence[torch.Tensor] | None = None
    ) -> Any:
        """Return the losses by name in training mode, else boxes, scores and masks of the one image.

        Parameters
        ----------
        images : sequence of (3, H, W)
        targets : list of dict, optional
            See `target`; for training.
        encoded : sequence of tensors, optional
            What the frozen encoder makes of the images, see `maskrcnn_pyramid.UNetPyramid.encode`.
        """
        if not self.training:
            images = flips_of(*images, self.roi_heads.flips)
        listed, targets = self.transform(images, targets)
        features = self.backbone(listed.tensors) if encoded is None else self.backbone(listed.tensors, encoded)
        proposals, losses = self.rpn(listed, features, targets)
        found, more = self.roi_heads(features, proposals, listed.image_sizes, targets)
        if self.training:
            told = {} if self.class_head is None else {"loss_class": self.class_head.loss(features, targets)}
            return losses | more | told
        if self.class_head is not None:
            every = self.class_head.votes(features, [one["boxes"] for one in found])
            found = [one | {"votes": votes} for one, votes in zip(found, every, strict=True)]
        return found


def build(config: Mapping[str, Any], classes: int) -> MaskRCNN:
    """Build the detector.

    Parameters
    ----------
    config : mapping
        backbone ("cellpose_unet" or "resnet50_fpn_v2"), shown, fpn_channels, freeze_backbone, boxes_per_image, max_detections,
        tile_detections, score_threshold, nms_threshold, mask_box_margin, precision; and, where they are not the usual ones,
        widths of the U-Net, anchor_sizes of each level (px), flips; imagenet, whether a ResNet is shown colours as
        torchvision's were.
    classes : int
        Known classes: the outputs of the classifier.
    """
    unet = None
    if config["backbone"] == "cellpose_unet":
        unet = CellposeUNet(widths=config.get("widths") or WIDTHS)
        unet.arithmetic = arithmetic(config["precision"])
        backbone = UNetPyramid(unet, config["fpn_channels"], config["freeze_backbone"], config["shown"])
        levels, sizes = ("1", "2"), ((12, 24, 36), (48, 72, 108))
        width = backbone.out_channels
        box_pool = MultiScaleRoIAlign(["1", "2"], 7, 1, canonical_scale=40, canonical_level=3)
        mask_pool, mask_head = MaskPool(), MaskHead(2 * unet.widths[1] + width, width)
        mask_predictor: nn.Module = MaskPredictor(width, unet.widths[0] + 3)
    else:
        backbone = _resnet50(config["freeze_backbone"] and config.get("imagenet", False))
        levels, sizes = ("0", "1", "2", "3", "pool"), ((12, 18), (24, 36), (48, 72), (96, 128), (160, 224))
        width, roi_levels = backbone.out_channels, ["0", "1", "2", "3"]
        box_pool = MultiScaleRoIAlign(roi_levels, 7, 2, canonical_scale=40, canonical_level=3)
        mask_pool = MultiScaleRoIAlign(roi_levels, 14, 2, canonical_scale=96, canonical_level=3)
        mask_head, mask_predictor = MaskRCNNHeads(width, (width, width), 1), _MaskPredictor(width)
    sizes = tuple(map(tuple, config.get("anchor_sizes") or sizes))
    anchors = AnchorGenerator(sizes, (RATIOS,) * len(sizes))
    detections = config["max_detections"] or config["tile_detections"]
    model = CellRCNN(
        backbone,
        rpn_anchor_generator=anchors,
        rpn_head=_ProposalHead(width, anchors.num_anchors_per_location()[0]),
        rpn_pre_nms_top_n_train=400,
        rpn_post_nms_top_n_train=250,
        rpn_pre_nms_top_n_test=PROPOSALS,
        rpn_post_nms_top_n_test=PROPOSALS,
        rpn_nms_thresh=TRAIN_NMS,
        box_roi_pool=box_pool,
        box_head=TwoMLPHead(width * 49, 512),
        box_predictor=_Predictor(512),
        box_batch_size_per_image=config["boxes_per_image"],
        box_detections_per_img=detections,
        box_score_thresh=config["score_threshold"],
        box_nms_thresh=config["nms_threshold"],
        mask_head=mask_head,
        mask_predictor=mask_predictor,
    )
    model.rpn.__class__, model.rpn.levels, model.rpn.detections = _Proposals, levels, detections
    model.roi_heads.__class__, model.roi_heads.mask_roi_pool = _Heads, mask_pool
    model.roi_heads.box_jitter, model.roi_heads.mask_margin = config.get("box_jitter", 0.0), config["mask_box_margin"]
    model.roi_heads.flips = config.get("flips", 1)
    model.rpn.box_similarity = model.roi_heads.box_similarity = box_iou
    model.transform = _AsItIs(config.get("imagenet", False))
    model.cell_classifier = CellClassifier(classes)
    model.cell_texture = TextureVote(classes) if config.get("texture") else None
    model.cell_alone = TextureVote(classes, alone=True) if config.get("alone") else None
    model.class_head = ClassHead(backbone.unet.widths, classes) if unet is not None and classes > 1 else None
    return model


class _AsItIs(nn.Module):
    """In place of torchvision's transform: images come at network scale, of one size; boxes go out as they are.

    Parameters
    ----------
    imagenet : bool
        Show each colour less its mean and by its deviation among ImageNet's pictures, as a ResNet was trained.
    """

    def __init__(self, imagenet: bool):
        super().__init__()
        mean, deviation = IMAGENET if imagenet else ((0.0,) * 3, (1.0,) * 3)
        for name, value in (("mean", mean), ("deviation", deviation)):
            self.register_buffer(name, torch.tensor(value).view(3, 1, 1), persistent=False)

    def forward(self, images, targets=None):
        batch = (torch.stack(list(images)) - self.mean) / self.deviation
        return ImageList(batch, [tuple(batch.shape[-2:])] * len(batch)), targets

    def postprocess(self, result, image_shapes, original_image_sizes):
        return result


def _resnet50(frozen: bool) -> nn.Module:
    """Return a ResNet-50 and its pyramid; a frozen body keeps weights and statistics as they are."""
    from torchvision.models import resnet50
    from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
    from torchvision.ops import FrozenBatchNorm2d
    from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

    body = resnet50(weights=None, norm_layer=FrozenBatchNorm2d if frozen else nn.BatchNorm2d)
    return _resnet_fpn_extractor(body, 0 if frozen else 5, extra_blocks=LastLevelMaxPool(), norm_layer=nn.BatchNorm2d)


def trainable(cells: Instances) -> np.ndarray:
    """Return, (N,) bool, which cells are large enough to teach a box and a mask: in area, and more than a pixel wide and high."""
    return (cells.areas_px >= LEAST_PX) & (cells.boxes_xywh.reshape(-1, 4)[:, 2:] > 1).all(axis=1)


def target(labels: np.ndarray, class_of: np.ndarray, ignore_unknown: bool, shared: np.ndarray = NOBODY) -> dict:
    """Return torchvision's target of a crop: boxes (N, 4) xyxy float, labels (N,) all 1 = cell, classes (N,), masks (N, H, W).

    Where some of it is not annotated (label -1), ``unknown`` (H, W) bool tells where.
    A cell of unknown class trains boxes and masks like any other; with `ignore_unknown` false it is background. Which numbers
    stand for several cells, `shared` says, see `overlapping_cells.numbered`.
    """
    cells = cells_in(labels, class_of, shared)
    kept = trainable(cells)
    if not ignore_unknown:
        kept &= cells.class_ids > 0
    cells = cells[kept]
    boxes = cells.boxes_xywh.astype(np.float32)
    boxes[:, 2:] += boxes[:, :2]
    masks = np.stack([cells.mask(k) for k in range(len(cells))]) if len(cells) else np.zeros((0, *labels.shape), bool)
    made = {
        "boxes": torch.from_numpy(boxes),
        "labels": torch.ones(len(cells), dtype=torch.int64),
        "classes": torch.from_numpy(cells.class_ids.astype(np.int64)),
        "masks": torch.from_numpy(masks.astype(np.uint8)),
    }
    return made | ({"unknown": torch.from_numpy(labels < 0)} if cells.unknown_px else {})


def load_published(model: nn.Module, path: Path) -> None:
    """Load a torchvision Mask R-CNN or ResNet-50: every tensor of the body must be there, heads are taken where they fit.

    Raises
    ------
    UserError
        The checkpoint lacks tensors of the encoder.
    """
    tensors = weights.load_tensors(path)
    if "conv1.weight" in tensors:
        tensors = {f"backbone.body.{key}": value for key, value in tensors.items()}
    body = [key for key in model.state_dict() if key.startswith("backbone.body.") and "num_batches" not in key]
    missing = [key for key in body if key not in tensors or tensors[key].shape != model.state_dict()[key].shape]
    if missing:
        raise UserError(
            f"{path} lacks {len(missing)} tensors of a ResNet-50", "give torchvision's maskrcnn_resnet50_fpn_v2"
        )
    take_over(model, tensors, path.name)
