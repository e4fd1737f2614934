"""What a Mask R-CNN learns from, step by step, whichever library computes it: crops of the training images, and their loss.

Of several processes each has its share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.errors import UserError
from cellkit.log import LOG
from cellkit.models.shared.detector_settings import Training
from cellkit.models.shared.inputs import CELL_PX, nearest, planes_of, random_warp, to_network_scale, vary
from cellkit.models.shared.overlapping_cells import cells_in, numbered
from cellkit.models.shared.processes import place
from cellkit.models.shared.shares import all_shares, own_share, total


def scaled(
    image: np.ndarray, truth: Instances, diameter_px: float, keep_overlaps: bool = False
) -> tuple[np.ndarray, ...]:
    """Bring one labelled image to network scale.

    Returns
    -------
    planes : (3, h, w) float32
    labels : (h, w) int32
        0 = background, -1 = not annotated.
    class_of : (N + 1,) int64
        Class of each label; 0 = unknown.
    shared : (R, M) int64
        Where labelled cells overlap and that is kept: see `overlapping_cells.numbered`.
    """
    planes, labels = to_network_scale(planes_of(image), truth, diameter_px, least_px=16)
    class_of = np.r_[0, truth.class_ids]
    if not (keep_overlaps and truth.overlapping):
        return planes, labels, class_of
    labels, shared = numbered(truth)
    return planes, nearest(labels, planes.shape[1:]), class_of, shared


def say_untrainable(items: Sequence, records: Sequence[ImageRecord]) -> int:
    """Say how many labelled cells are too small at network scale to teach a box or a mask; return how many.

    Parameters
    ----------
    items : sequence of (planes, labels, class_of, ...)
        As `scaled` gives them.

    Raises
    ------
    UserError
        All of them are.
    """
    from cellkit.models.maskrcnn_network import LEAST_PX, trainable

    lost = [len(item[2]) - 1 - int(trainable(cells_in(*item[1:])).sum()) for item in items]
    cells, small = sum(len(item[2]) - 1 for item in items), sum(lost)
    most = records[int(np.argmax(lost))].image_id
    what = (
        f"{small} of {cells} labelled cells are smaller than {LEAST_PX} px where a cell of the usual diameter is "
        f"{CELL_PX:g} px wide (most in {most}: {max(lost)})"
    )
    remedy = "a smaller maskrcnn.diameter_px shows them larger"
    if small == cells:
        raise UserError(f"{what}: there is nothing to train on", remedy)
    if small:
        LOG.warning(f"{what}: they teach no box and no mask; {remedy}")
    return small


def crop(item, rng: np.random.Generator, size_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a turned, flipped, scaled crop: planes (3, size, size) float32 and labels (size, size) int32."""
    import cv2

    planes, labels, *_ = item
    warp, _ = random_warp(np.maximum(labels, 0), rng, size_px)
    size = (size_px, size_px)
    turned = cv2.warpAffine(np.ascontiguousarray(planes.transpose(1, 2, 0)), warp, size, flags=cv2.INTER_LINEAR)
    ids = cv2.warpAffine(labels.astype(np.float64), warp, size, flags=cv2.INTER_NEAREST)
    return vary(turned.transpose(2, 0, 1), rng), ids.astype(np.int32)


class DetectorLoss:
    """Step number -> sum of the losses over a batch of crops, and of the classifier's over one of cells.

    A crop without a labelled cell of which some is not annotated is left out: perhaps nothing in it is known. While an encoder
    that can be told so is frozen, its features come from `EncodedViews`.

    Of several processes each has a share of the crops and cut-outs, drawn by itself, and returns its share of the loss. The
    images are dealt out to them anew whenever other views of them take their place, so that no two encode the same.
    """

    def __init__(self, model, items: Sequence, config: Training):
        from cellkit.models.cell_classifier import ClassLoss
        from cellkit.models.maskrcnn_cache import EncodedViews

        self.model, self.items, self.config = model, items, config
        self.device = next(model.parameters()).device
        self.class_loss = ClassLoss(model.cell_classifier, items, config.cells_per_step)
        backbone = getattr(model, "backbone", None)
        self.encoder = backbone if getattr(backbone, "frozen", False) else None
        self.frozen_steps = frozen_steps(config) if self.encoder is not None else 0
        self.views = None
        if self.frozen_steps:
            sizes = (config.crop_px, config.batch_size, self.frozen_steps, config.seed)
            self.views = EncodedViews(self.encoder.encode, items, *sizes, self.device)

    def __call__(self, step: int) -> Any:
        """Return the loss of a step, a scalar tensor."""
        import torch

        from cellkit.models.maskrcnn_network import target

        if self.encoder is not None and step >= self.frozen_steps:
            self.encoder.unfreeze()
            self.encoder = self.views = None
        chosen, rng = self._chosen(step)
        planes, targets, features = [], [], []
        for index in chosen:
            if self.views is not None:
                picture, labels, known = self.views.draw(index, step, rng)
            else:
                picture, labels, known = *crop(self.items[index], rng, self.config.crop_px), []
            _, _, class_of, *shared = self.items[index]
            made = target(labels, class_of, self.config.ignore_unknown, *shared)
            if "unknown" in made and not len(made["boxes"]):
                continue
            planes.append(torch.from_numpy(np.ascontiguousarray(picture)).to(self.device))
            targets.append({k: v.to(self.device) for k, v in made.items()})
            features.append(known)
        of_all = total(len(targets), self.device)
        if not targets:
            return self._nothing() + self._of_classes(rng)
        encoded = [torch.stack(level) for level in zip(*features, strict=True)]
        losses = self.model(planes, targets, encoded) if encoded else self.model(planes, targets)
        return sum(losses.values()) * (len(targets) / of_all) + self._of_classes(rng)

    def _nothing(self) -> Any:
        """Return 0, of which all that a step trains has a gradient: not an encoder while it is frozen, it would decay."""
        frozen = set() if self.encoder is None else {id(p) for p in self.encoder.unet.parameters()}
        return 0 * sum(p.sum() for p in self.model.parameters() if p.requires_grad and id(p) not in frozen)

    def _of_classes(self, rng: np.random.Generator) -> Any:
        """Return this process's share of the loss of the classifier."""
        whole = self.config.cells_per_step
        return self.class_loss(rng, own_share(whole)) * (own_share(whole) / all_shares(whole))

    def _chosen(self, step: int) -> tuple[np.ndarray, np.random.Generator]:
        """Return the images that this process takes crops of in a step, and what else it draws with."""
        rank, count = place()
        seed, most = self.config.seed, len(self.items)
        if count == 1:
            rng = np.random.default_rng([seed, step])
            return np.resize(rng.permutation(most), self.config.batch_size), rng
        import torch

        torch.manual_seed(step * count + rank)
        turn = step if self.views is None else step // self.views.steps_each
        dealt = np.resize(np.random.default_rng([seed, turn, count]).permutation(most), max(most, count))
        rng = np.random.default_rng([seed, step, rank])
        return np.resize(rng.permutation(dealt[rank::count]), own_share(self.config.batch_size)), rng


def frozen_steps(config: Training) -> int:
    """Return how many steps of a training keep the encoder as it is.

    Examples
    --------
    >>> [frozen_steps(Training(steps=100, unfreeze_after=share)) for share in (None, 0.75)]
    [100, 75]
    >>> frozen_steps(Training(steps=100, freeze_backbone=False))
    0
    """
    if not config.freeze_backbone:
        return 0
    return config.steps if config.unfreeze_after is None else round(config.unfreeze_after * config.steps)
