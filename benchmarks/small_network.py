"""A backend for benchmarks: a network of some thousand weights, trained in seconds with the loop that all backends share."""

from __future__ import annotations

import zlib
from collections import Counter
from pathlib import Path

import numpy as np
from pydantic import Field

from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.evaluate.folds import FOLD_STEPS
from cellkit.formats.coco import write_coco
from cellkit.formats.coco_reading import read_coco
from cellkit.models import weights
from cellkit.models.shared.contract import Segmenter
from cellkit.models.training import Plan, fingerprint, fit, random_state_kept
from cellkit.settings import Frozen, Number, weights_field

NAME = "small_network"
TITLE = "Small network"
REQUIRES = ("torch", "scipy")
BYTES_PER_PX = 100
CROP_PX, BATCH, SIZE_PX, LEAST_AREA_PX = 48, 4, 96, 15


class Settings(Frozen):
    """Nothing changes from prediction to prediction."""


class TrainSettings(Frozen):
    """What a training may be told."""

    base: str = weights_field("scratch", "weights to start from", NAME)
    learning_rate: Number = Field(3e-3, gt=0, description="largest learning rate")
    steps: int = Field(30, ge=1, description="optimiser steps")
    fold_steps: Number = Field(
        FOLD_STEPS, gt=0, le=1, description="steps of a run without a part, of those of the whole run"
    )
    start: str = weights_field("", "weights that a training starts from where they are not the base", NAME)
    own_fields: str = Field("", description="folder of `own_fields`: trained on these, whatever images are given")
    seed: int = Field(0, description="random seed")


def network():
    """Return three convolutions with batch normalisation: cytoplasm and nuclei in, inside a cell and at its rim out."""
    from torch import nn

    layers = []
    for inputs, outputs in ((2, 12), (12, 16), (16, 16)):
        layers += [nn.Conv2d(inputs, outputs, 5, padding=2), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(16, 2, 1))


def _target(cells: Instances) -> np.ndarray:
    """Return inside and rim of the cells, (2, H, W) float32."""
    from scipy import ndimage

    labels = cells.paint()
    rim = (ndimage.maximum_filter(labels, 3) != ndimage.minimum_filter(labels, 3)) & (labels > 0)
    return np.stack([labels > 0, rim]).astype(np.float32)


def _planes(image: np.ndarray) -> np.ndarray:
    return image[..., 1:].transpose(2, 0, 1).astype(np.float32) / 255 - 0.3


@random_state_kept()
def train(train: CellDataset, val: CellDataset, config: TrainSettings, out: Path) -> Path:
    """Train on crops; the last weights are taken.

    On `own_fields` the images that are given decide which crops are drawn, and nothing else: other runs of one recipe.
    """
    import torch

    model, seed = network(), [config.seed]
    if config.own_fields:
        names = " ".join(record.image_id for record in train.records)
        train, seed = own_fields(Path(config.own_fields)), [config.seed, zlib.crc32(names.encode())]
    if config.base != "scratch":
        model.load_state_dict(weights.load_tensors(Path(config.start or config.base)))
    else:
        torch.manual_seed(config.seed)
        model = network()
    items = [(_planes(train.image(k)), _target(train.instances[k])) for k in range(len(train))]
    plan = Plan(config.steps, config.steps, learning_rate=config.learning_rate, warmup_steps=5)

    def loss_at(step: int):
        rng, pictures, targets = np.random.default_rng([*seed, step]), [], []
        for _ in range(BATCH):
            planes, target = items[rng.integers(len(items))]
            height, width = (min(CROP_PX, size) for size in planes.shape[1:])
            y, x = rng.integers(planes.shape[1] - height + 1), rng.integers(planes.shape[2] - width + 1)
            window = slice(None), slice(y, y + height), slice(x, x + width)
            pad = ((0, 0), (0, CROP_PX - height), (0, CROP_PX - width))
            pictures.append(np.pad(planes[window], pad))
            targets.append(np.pad(target[window], pad))
        found = model(torch.from_numpy(np.stack(pictures)))
        return torch.nn.functional.binary_cross_entropy_with_logits(found, torch.from_numpy(np.stack(targets)))

    fit(
        model,
        loss_at,
        lambda: np.nan,
        plan,
        Path(out),
        fingerprint(model, items, plan, seed),
        NAME,
        choose=False,
    )
    return weights.save_checkpoint(Path(out) / "small_tuned.safetensors", model.state_dict(), NAME)


def calibrate(train: CellDataset, config: TrainSettings, to: Path) -> Path:
    """Copy the start weights; nothing is searched."""
    return weights.save_checkpoint(Path(f"{to}.safetensors"), weights.load_tensors(Path(config.base)), NAME)


def load(checkpoint: Path, settings: Settings | None = None) -> Segmenter:
    """Return a function from a stream of (H, W, 3) uint8 images to their cells."""
    import torch
    from scipy import ndimage

    model = network()
    model.load_state_dict(weights.load_tensors(checkpoint))
    model.eval()

    def find(image: np.ndarray, left_out: Counter[str]) -> Instances:
        with torch.no_grad():
            inside, rim = torch.sigmoid(model(torch.from_numpy(_planes(image))[None]))[0].numpy()
        seeds = ndimage.label((inside > 0.5) & (rim < 0.35))[0]
        near = ndimage.distance_transform_edt(seeds == 0, return_indices=True)
        labels = np.where((inside > 0.5) & (near[0] < 4), seeds[tuple(near[1])], 0)
        found = Instances.from_labels(labels.astype(np.int32))
        return found[found.areas_px >= LEAST_AREA_PX]

    return Segmenter(find, {})


def fields(folder: Path, count: int, seed: list[int], split: str = "train") -> CellDataset:
    """Draw images of a style of their own into a folder."""
    from PIL import Image

    from cellkit.cells.drawn.camera import expose
    from cellkit.cells.drawn.field import draw_field
    from cellkit.cells.drawn.style import random_style

    folder.mkdir(parents=True, exist_ok=True)
    style = random_style(np.random.default_rng(seed), (SIZE_PX, SIZE_PX))
    records, instances = [], []
    for k in range(count):
        field = draw_field(("HEK",), style, [*seed, k])
        planes = []
        for plane in expose(field, style, [*seed, k, 1]):
            low, high = np.percentile(plane, (0.3, 99.8))
            planes.append((np.clip((plane - low) / max(high - low, 1), 0, 1) * 255).round().astype(np.uint8))
        Image.fromarray(np.stack([np.zeros_like(planes[0]), planes[1], planes[0]], axis=-1)).save(folder / f"{k}.png")
        cells = Instances.from_labels(field.labels)
        instances.append(cells[cells.areas_px >= LEAST_AREA_PX])
        records.append(ImageRecord(str(k), f"{k}.png", SIZE_PX, SIZE_PX, split=split))
    return CellDataset(records, instances, (), folder, list(range(1, count + 1)))


def base(folder: Path, steps: int = 400) -> Path:
    """Train, once, a start on fields of many styles."""
    path = folder / "small_tuned.safetensors"
    if not path.with_suffix(".json").is_file():
        own = own_fields(folder)
        train(own, own.subset([]), TrainSettings(steps=steps), folder)
    return path


def own_fields(folder: Path, images: int = 12) -> CellDataset:
    """Return the fields of many styles that the start learned from; drawn once."""
    path = folder / "own.json"
    if not path.is_file():
        parts = [fields(folder / f"style_{k}", 1, [77, k]) for k in range(images)]
        records = [ImageRecord(f"{k}", f"style_{k}/0.png", SIZE_PX, SIZE_PX, split="train") for k in range(images)]
        write_coco(path, records, [part.instances[0] for part in parts], ())
    return read_coco(path, folder)


def turned(instances: list[Instances]) -> list[Instances]:
    """Return labels that tell nothing of their images: turned by half, mirrored, and of the next image where there is one."""
    labels = [cells.paint()[::-1, ::-1].T.copy() for cells in instances]
    return [Instances.from_labels(one) for one in labels[1:] + labels[:1]]
