"""A small Cellpose-SAM that finds bright discs, learnt in seconds, and pictures of such discs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from sam_cases import SMALL

from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.models.sam_network import BACKEND, load_start
from cellkit.models.sam_training import Adaptation, loss_of
from cellkit.models.shared.flow_loss import Prepared
from cellkit.models.shared.flows import target_of
from cellkit.models.shared.inputs import three_channels
from cellkit.models.training import Plan, fit, random_state_kept
from cellkit.models.weights import save_checkpoint

SIDE_PX = 128
LEARNER = replace(SMALL, mlp=64, neck=32)


def discs(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a picture (128, 128, 3) uint8 of about 13 bright discs, and their labels (128, 128) int32."""
    rng, labels, (y, x) = np.random.default_rng(seed), np.zeros((SIDE_PX,) * 2, np.int32), np.mgrid[:SIDE_PX, :SIDE_PX]
    for row in range(16, SIDE_PX, 32):
        for column in range(16, SIDE_PX, 32):
            (dy, dx), radius = rng.integers(-3, 4, 2), rng.integers(9, 13)
            if rng.random() < 0.8:
                labels[(y - row - dy) ** 2 + (x - column - dx) ** 2 < radius**2] = labels.max() + 1
    grey = np.where(labels > 0, 200, 30) + rng.normal(0, 8, labels.shape)
    return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, axis=2), labels


def data_of(folder: Path, splits: Sequence[str], shift_px: int = 0) -> CellDataset:
    """Write pictures of discs, one for each split named; the labels of training images are moved down and right."""
    folder.mkdir(parents=True, exist_ok=True)
    records, instances = [], []
    for k, split in enumerate(splits):
        image, labels = discs(k)
        Image.fromarray(image).save(folder / f"{k}.png")
        if split == "train" and shift_px:
            moved = np.zeros_like(labels)
            moved[shift_px:, shift_px:] = labels[:-shift_px, :-shift_px]
            labels = moved
        records.append(ImageRecord(f"i{k}", f"{k}.png", SIDE_PX, SIDE_PX, split=split))
        instances.append(Instances.from_labels(labels))
    return CellDataset(records, instances, ("cell",), folder, list(range(1, len(records) + 1)))


@random_state_kept()
def learnt(path: Path, steps: int, pairs: Sequence[tuple[np.ndarray, np.ndarray]] = ()) -> Path:
    """Write a network that has learnt so many steps what cells look like, those of `pairs` or discs, as `path`.safetensors."""
    network = load_start("scratch", 0, LEARNER, "float32")
    pairs = pairs or [discs(1000 + k) for k in range(8)]
    items = [Prepared(three_channels(image), target_of(labels)) for image, labels in pairs]
    how = Adaptation(way="all", batch_size=4, crop_px=64, stochastic_depth=0.0, recompute=False)
    plan = Plan(steps, eval_every=steps, learning_rate=5e-3, warmup_steps=20)
    fit(network, loss_of(network, items, how), lambda: 0.0, plan, path.parent, "learnt", choose=False)
    return save_checkpoint(path.with_suffix(".safetensors"), network.state_dict(), BACKEND)
