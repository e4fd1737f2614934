"""Cellpose's residual U-Net (generations 1 to 3): trains on a CPU in minutes, runs the published checkpoints.

Flows and the reconstruction of masks come from the cellpose package (4.2, dynamics.py). The training loop is ours: best
checkpoint by whole-image score, early stop, resume, stop at the first loss that is not finite, cached flows.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cellkit.errors import UserError
from cellkit.instances import Instances
from cellkit.leftout import say_small, too_small
from cellkit.training import random_state_kept

if TYPE_CHECKING:
    from cellkit.dataset import CellDataset

NAME = "cellpose_unet"
TILE_PX, OVERLAP_PX = 1024, 128
LOOKS_PX = tuple(4 * 1.6**k for k in range(13))  # diameters that cells are looked at with, to find their own
LEAST_DIAMETER_PX, LEAST_AREA_PX, DIAM_PX = 4.5, 4, 30.0  # below: noise of single pixels; what the network knows best
BYTES_PER_PX, BYTES_PER_FILE_PX = 110, 50  # of memory; measured, 1024 and 2048 px: 42 and 101 bytes more a pixel
DOUBTFUL = "found in hardly more than noise, whose contrast was stretched: doubtful, look at them"
LARGEST_SHARE = 1.0  # of the image that one cell may cover
STEPS, FAR_PX, STILL_PX = 200, 60, 5  # along the flows: Cellpose's number; a pixel that came this far may need more
GRID = {"flow_threshold": (0.4, 0.8, 1.2, 0.0), "cellprob_threshold": (0.0, -1.0, -2.0, 1.0)}  # searched when not set
CHANNELS = {"both": (0, 1), "cytoplasm": (0,), "nuclei": (1,)}
SHOWN = {"both": "cytoplasm (green) and nuclei (blue)", "cytoplasm": "cytoplasm (green)", "nuclei": "nuclei (blue)"}
DEFAULTS = {
    "diameter_px": None,
    "channels": "both",
    "flow_threshold": 0.4,
    "cellprob_threshold": 0.0,
    "min_area_px": 15,
}


# ---- the contract --------------------------------------------------------------------------------------------------
def load(checkpoint: str | Path, config: Any = None) -> Callable[[Iterable[np.ndarray]], Iterator[Instances]]:
    """Return a function from a stream of (H, W, 3) uint8 images to their cells, in order.

    Parameters
    ----------
    checkpoint : path
        Ours (safetensors with a card) or a published one of Cellpose 1 to 3.
    config : section or dict, optional
        ``diameter_px`` (None = the diameter of the cells it was trained on), ``flow_threshold``, ``cellprob_threshold``,
        ``min_area_px``; what it lacks comes from the card.

    Raises
    ------
    UserError
        No checkpoint there, or one of another network.
    """
    network, card_config = load_network(checkpoint)
    settings = _settings(config, card_config)
    if settings["diameter_px"] is None:
        settings["diameter_px"] = float(network.diam_labels.item())

    def segment(images: Iterable[np.ndarray]) -> Iterator[Instances]:
        unsaid = True
        for image in images:
            if unsaid and lies_elsewhere(image, settings["channels"]):
                unsaid = False
                say(
                    f"an image is empty in what the network is shown, {SHOWN[settings['channels']]}, and not in its other "
                    "colours: nothing can be found there; set channels (both, cytoplasm or nuclei)"
                )
            found = segment_image(network, image, **settings, left_out=segment.left_out)
            if len(found) and only_noise(image, settings["channels"]):
                segment.left_out[DOUBTFUL] += len(found)
            yield found

    segment.settings, segment.left_out = settings, Counter()
    segment.bytes_for = lambda shape: bytes_for(shape, settings["diameter_px"])
    return segment


@random_state_kept()
def train(train: CellDataset, val: CellDataset, config: Any, out: Path) -> Path:
    """Fine-tune on the labelled images of `train`; whole images of `val` choose the weights where there are enough.

    Which of `val` choose, and that none does while there are few, is `cellkit.judging.choosers`'s; the others are not looked
    at, so that they can judge. Where none chooses, all are scored along the way to be watched, and the last weights kept.

    Parameters
    ----------
    config : section
        ``base`` (weights, or "scratch"), ``diameter_px`` (None = from the training labels), ``steps``, ``batch_size``,
        ``crop_px``, ``learning_rate``, ``weight_decay``, ``warmup_steps``, ``eval_every``, ``patience``, ``val_images``
        (0 = all), ``seed``, and the thresholds of `load`.
    out : Path
        Folder for the resume state, ``history.csv`` and the checkpoint.

    Returns
    -------
    Path
        ``cellpose_tuned.safetensors``; its card holds the diameter, the thresholds and the validation score.

    Raises
    ------
    UserError
        Nothing to train on, nothing in the channels that the network is shown, or no weights to start from.
    """
    from cellkit import weights
    from cellkit.loop import progress
    from cellkit.training import arithmetic, fit, plan_of

    if not len(train) or not sum(len(i) for i in train.instances):
        raise UserError("there is no labelled cell to train on", "label images first (02), or lower min_area_px")
    if not len(val):
        raise UserError("there is no validation image", "give convert.split a val fraction above 0")
    out = Path(out)
    network = load_start(config.base, config.seed)
    settings = _uncalibrated(train, config)
    diameter = settings["diameter_px"]
    refuse_small(train, config, "finetune")
    ask_for_memory(train, val, diameter, 20, lambda shape: bytes_for(shape, diameter))
    each = progress(range(len(train)), "flows of training images")
    items = [prepare(*train[i], diameter, out / "flows", settings["channels"]) for i in each]
    refuse_empty([item.planes for item in items], train, SHOWN[settings["channels"]], "finetune.channels")
    scored, choosing = scored_along(val, getattr(config, "val_images", 0))
    scorer = _Scorer(network, [val[i] for i in scored], settings, str(config.base))
    searched = _searched(config)
    if searched:
        at = ", ".join(f"{key} {settings[key]:g}" for key in GRID)
        say(f"scores during training are read at {at}; {' and '.join(searched)} of the result are searched afterwards")
    plan = plan_of(config, "cellpose_unet")
    loss_at = Loss(network, items, config.batch_size, config.crop_px, config.seed)
    stamp = fingerprint(
        network, items, plan, settings, config.batch_size, config.crop_px, config.seed, scored, choosing
    )
    history = fit(
        network, loss_at, scorer, plan, out, stamp, "cellpose_unet", choosing, val.compared_by("validation score")
    )
    network.diam_labels.data.fill_(diameter)
    read_at = {key: settings[key] for key in GRID}
    settings = _calibrated(network, train, config)
    metrics = {
        val.compared_by("map_iou_validation"): round(history.best_score, 4),
        "chosen_by": [val.records[i].image_id for i in scored] if choosing else [],
        "step": history.best_step,
        "stopped": history.stopped,
        "convention": "kaggle, mean of whole validation images",
        "base": str(config.base),
        "read_at": read_at,
        "arithmetic": arithmetic(),
    }
    return weights.save_checkpoint(
        out / "cellpose_tuned.safetensors",
        network.state_dict(),
        NAME,
        config=settings,
        metrics=metrics,
        licence="of your images",
    )


def calibrate(checkpoint: str | Path, train: CellDataset, config: Any, to: Path) -> Path:
    """Copy a checkpoint and note in its card how it is best read on these cells: diameter, and its own thresholds.

    Both come from the training images, as those of `train` do, so that two models are compared each at its best.

    Parameters
    ----------
    checkpoint : path
        Ours or a published one.
    config : section
        As for `train`; a diameter or threshold that is set there stays.
    to : Path
        Of the copy, without suffix.

    Returns
    -------
    Path
        ``<to>.safetensors``.
    """
    from cellkit import weights

    network = load_network(checkpoint)[0]
    card = weights.read_card(Path(checkpoint)) if Path(checkpoint).suffix == ".safetensors" else None
    return weights.save_checkpoint(
        Path(f"{to}.safetensors"),
        network.state_dict(),
        NAME,
        config=_calibrated(network, train, config),
        metrics=card.metrics if card else {},
        licence=card.licence if card else "",
    )


def _uncalibrated(train: CellDataset, config: Any) -> dict[str, Any]:
    """Return the settings while training: the diameter of the labels, thresholds at 0 where none is set."""
    diameter = config.diameter_px or diameter_of(train.instances)
    return {**_settings(config, dict.fromkeys(GRID, 0.0)), "diameter_px": diameter}


def _calibrated(network, train: CellDataset, config: Any) -> dict[str, Any]:
    """Return the settings to predict with; thresholds that are not set are searched on up to six training images."""
    settings = _uncalibrated(train, config)
    known = train.without_proposed() or train
    labelled = [known[i] for i in spread(len(known), 6)]
    return settings | best_thresholds(network, labelled, settings, _searched(config), known.compared_by("MAP IoU"))


def _searched(config: Any) -> list[str]:
    """Return the thresholds that are not set, and so are searched."""
    return [key for key in GRID if getattr(config, key, None) is None]


def scored_along(val: CellDataset, most: int = 0) -> tuple[list[int], bool]:
    """Return which validation images are scored during a training, at most `most` (0 = all), and whether they choose.

    Images without any cell choose nothing, which is said: their score is 1 for a network that finds nothing.
    """
    from cellkit.judging import choosers

    names = set(choosers(val.records))
    places = [k for k, record in enumerate(val.records) if not names or record.image_id in names]
    scored = [places[k] for k in spread(len(places), most)]
    empty = not any(len(val.instances[k]) for k in scored)
    if empty:
        say(
            f"no cell is labelled in the {len(scored)} validation images that are scored: the score only tells that nothing "
            "is found there, and chooses no weights. Label cells in some of them"
        )
    return scored, bool(names) and not empty


def refuse_empty(shown: Sequence[np.ndarray], train: CellDataset, what: str, key: str) -> None:
    """Refuse training images of which the network would be shown nothing; where they are some of many, say which.

    Parameters
    ----------
    shown : sequence of (C, h, w) float32
        The channels that are shown of each image of `train`; a constant one is all 0.
    what : str
        Which channels these are.
    key : str
        The setting that says which are shown.

    Raises
    ------
    UserError
        All of them are empty.
    """
    empty = [record.image_id for record, planes in zip(train.records, shown, strict=True) if not planes.any()]
    if empty and len(empty) == len(shown):
        raise UserError(
            f"all {len(shown)} training images are empty in what the network is shown, {what}",
            f"show it what the images have ({key}), or convert them with that channel (convert.channels)",
        )
    if empty:
        say(f"{len(empty)} of {len(shown)} training images are empty in {what}, e.g. {empty[0]}; see {key}")


# ---- weights -------------------------------------------------------------------------------------------------------
def load_network(checkpoint: str | Path):
    """Return the network in evaluation mode and the config of its card ({} for a published checkpoint)."""
    from cellkit import weights
    from cellkit.backends.unet_network import CellposeUNet
    from cellkit.training import device_and_dtype

    checkpoint = Path(checkpoint)
    config: dict = {}
    if checkpoint.suffix == ".safetensors":
        config = weights.card_for(checkpoint, NAME).config
    tensors = {k: v.float() if v.is_floating_point() else v for k, v in weights.load_tensors(checkpoint).items()}
    if "W2" in tensors or any(k.startswith("encoder.") for k in tensors):
        raise UserError(f"{checkpoint} is a Cellpose-SAM checkpoint", "open it with backend: cellpose_sam")
    network = CellposeUNet()
    expected = network.state_dict()
    missing = [k for k in expected if k not in tensors and not k.startswith("diam_")]
    wrong = [k for k in expected if k in tensors and tensors[k].numel() != expected[k].numel()]
    if missing or wrong:
        raise UserError(
            f"{checkpoint} is no two-channel Cellpose U-Net ({len(missing)} tensors missing, {len(wrong)} of another size)",
            "give a checkpoint of Cellpose 1 to 3 or one that 03_finetune_cellpose wrote",
        )
    network.load_state_dict({k: tensors.get(k, v).reshape(v.shape) for k, v in expected.items()})
    return _placed(network, device_and_dtype()[0]).eval(), config


def _placed(network, device):
    import torch

    return network.to(device).to(memory_format=torch.channels_last)


def load_start(base: str | Path, seed: int = 0):
    """Return the network to start from: named weights, a path, or "scratch" (random numbers from `seed`)."""
    import torch

    from cellkit import weights
    from cellkit.backends.unet_network import CellposeUNet
    from cellkit.training import device_and_dtype

    if str(base) == "scratch":
        with random_state_kept():
            torch.manual_seed(seed)
            return _placed(CellposeUNet(), device_and_dtype()[0])
    return load_network(weights.find_weights(base))[0]


def _settings(config: Any, card: dict) -> dict:
    """Merge what the caller set, what the card says, and the defaults, in that order."""
    given = config if isinstance(config, dict) else {k: getattr(config, k, None) for k in DEFAULTS}
    return {
        k: next((x for x in (given.get(k), card.get(k)) if x is not None), default) for k, default in DEFAULTS.items()
    }


# ---- images in, cells out ------------------------------------------------------------------------------------------
def two_channels(image: np.ndarray, channels: str = "both") -> np.ndarray:
    """Return cytoplasm (green) and nuclei (blue), each scaled so that its 1st and 99th percentile are 0 and 1.

    Parameters
    ----------
    image : (H, W, 3) uint8
    channels : {"both", "nuclei", "cytoplasm"}
        What the network is shown; the other channel is left empty. Nuclei alone: the starter weights outline nuclei.

    Returns
    -------
    (2, H, W) float32
        A constant channel is all 0.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"an image is (H, W, 3) uint8, this is {image.shape} {image.dtype}")
    if channels not in CHANNELS:
        raise UserError(f"channels is '{channels}'", f"use one of {', '.join(CHANNELS)}")
    out = np.zeros((2, *image.shape[:2]), np.float32)
    for channel in CHANNELS[channels]:
        plane = image[..., channel + 1]
        low, high = np.percentile(plane, (1, 99))
        if high - low < 1:
            low, high = float(plane.min()), float(plane.max())  # a few bright pixels on nothing
        if high > low:
            out[channel] = (plane - np.float32(low)) / np.float32(high - low)
    return out


def lies_elsewhere(image: np.ndarray, channels: str) -> bool:
    """Tell whether an (H, W, 3) image is constant in all that the network is shown, and not in its other colours."""
    shown = {channel + 1 for channel in CHANNELS[channels]}
    flat = [bool((image[..., k] == image[0, 0, k]).all()) for k in range(3)]
    return all(flat[k] for k in shown) and not all(flat)


def only_noise(image: np.ndarray, channels: str = "both") -> bool:
    """Tell whether `two_channels` stretches noise to full contrast: in no channel shown do the percentiles span more.

    The 1st and 99th percentile of white noise are 4.7 of its standard deviations apart. That is estimated from second
    differences along a row, which neither cells nor uneven light reach. So it is in an empty picture, and in one where cells
    cover less than 1 %.

    Parameters
    ----------
    image : (H, W, 3) uint8
    """
    some = image[:: (len(image) - 1) // 256 + 1]
    judged = []
    for channel in CHANNELS[channels]:
        plane = some[..., channel + 1].astype(np.int16)
        if plane.shape[1] > 2 and plane.min() < plane.max():
            noise = 1.4826 * np.median(np.abs(np.diff(plane, 2, axis=1))) / np.sqrt(6)
            judged.append(bool(noise > 0 and np.ptp(np.percentile(plane, (1, 99))) < 6 * noise))
    return bool(judged) and all(judged)


def segment_image(
    network,
    image: np.ndarray,
    diameter_px: float,
    flow_threshold: float,
    cellprob_threshold: float,
    min_area_px: int,
    channels: str = "both",
    left_out: Counter[str] | None = None,
) -> Instances:
    """Find the cells of one image.

    Parameters
    ----------
    image : (H, W, 3) uint8
    diameter_px : float
        Of the cells in this image; the image is scaled so that it becomes the 30 px the network knows.
    left_out : Counter, optional
        Takes the number of masks below `min_area_px`.

    Returns
    -------
    Instances
        Score = mean cell probability inside the mask; class unknown.
    """
    maps = predict_maps(network, image, diameter_px, channels)
    return masks_of(maps, image.shape[:2], flow_threshold, cellprob_threshold, min_area_px, left_out)


def bytes_for(shape: tuple[int, int], diameter_px: float) -> int:
    """Return about how much memory finding the cells of an image takes, in bytes: most of it is at network scale.

    Examples
    --------
    >>> bytes_for((1000, 1000), 30.0), bytes_for((1000, 1000), 5.0)
    (110000000, 4010000000)
    """
    pixels, scale = shape[0] * shape[1], DIAM_PX / diameter_px
    return round(pixels * (BYTES_PER_PX * scale**2 + (scale != 1) * BYTES_PER_FILE_PX))


def ask_for_memory(train: CellDataset, shown: CellDataset, diameter_px: float, kept: int, needed: Callable) -> None:
    """Refuse a training whose images, brought to network scale, do not fit into the free memory; before any is read.

    Parameters
    ----------
    kept : int
        Bytes that are kept of each pixel of a training image at network scale.
    needed : callable
        Shape -> bytes that finding the cells of one image takes on top.
    """
    from cellkit.readers import check_memory

    shapes = [[(r.height_px, r.width_px) for r in part.records] for part in (train, shown)]
    total = sum(h * w for h, w in shapes[0]) * (DIAM_PX / diameter_px) ** 2 * kept
    total += max(map(needed, shapes[0] + shapes[1]))
    check_memory(Path(f"{len(train)} images at a diameter of {diameter_px:.3g} px"), round(total), "training on")


def predict_maps(network, image: np.ndarray, diameter_px: float, channels: str = "both") -> np.ndarray:
    """Return flow y, flow x and cell probability (logit) at network scale, (3, h, w) float32."""
    import cv2

    planes = two_channels(image, channels)
    scale = float(network.diam_mean.item()) / diameter_px
    height, width = (max(8, round(side * scale)) for side in image.shape[:2])
    if (height, width) != image.shape[:2]:
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        planes = np.stack([cv2.resize(plane, (width, height), interpolation=how) for plane in planes])
    return _tiled(network, planes)


def _tiled(network, planes: np.ndarray) -> np.ndarray:
    """Run the network over (2, h, w), in overlapping tiles where the image is large, blended by distance to their edge."""
    height, width = planes.shape[1:]
    if max(height, width) <= TILE_PX + OVERLAP_PX:
        return _forward(network, planes)
    out, weight = np.zeros((3, height, width), np.float32), np.zeros((height, width), np.float32)
    for y in _tile_starts(height):
        for x in _tile_starts(width):
            window = (slice(y, y + TILE_PX), slice(x, x + TILE_PX))
            found = _forward(network, planes[:, *window])
            ramp = np.minimum.outer(_ramp(found.shape[1]), _ramp(found.shape[2]))
            out[:, *window] += found * ramp
            weight[window] += ramp
    return out / weight


def _tile_starts(size: int) -> list[int]:
    """Return where tiles begin so that they cover `size` px and overlap by at least `OVERLAP_PX`."""
    if size <= TILE_PX:
        return [0]
    count = -(-(size - OVERLAP_PX) // (TILE_PX - OVERLAP_PX))
    return np.linspace(0, size - TILE_PX, count).round().astype(int).tolist()


def _ramp(size: int) -> np.ndarray:
    return np.minimum(np.minimum(np.arange(1, size + 1), np.arange(size, 0, -1)), OVERLAP_PX / 2).astype(np.float32)


def _forward(network, planes: np.ndarray) -> np.ndarray:
    import torch

    from cellkit.training import device_and_dtype

    device, dtype = device_and_dtype()
    height, width = planes.shape[1:]
    padded = np.pad(planes, ((0, 0), (0, -height % 8), (0, -width % 8)), mode="edge")
    x = torch.from_numpy(padded)[None].to(device).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        y = network(x)
    return y[0, :, :height, :width].float().cpu().numpy()


def masks_of(
    maps: np.ndarray,
    shape: tuple[int, int],
    flow_threshold: float,
    cellprob_threshold: float,
    min_area_px: int,
    left_out: Counter[str] | None = None,
) -> Instances:
    """Follow the flows to masks (cellpose.dynamics), at network scale; draw the outline at the image's own scale.

    The outline follows the cell probability resized bilinearly, so that an enlarged mask has no staircase; which cell a
    pixel belongs to is decided at network scale. A cell may fill the image (cellpose drops those above 40 % of it).
    """
    import cv2
    from cellpose import utils
    from skimage.segmentation import expand_labels

    logit = maps[2]
    labels = _along_flows(maps[:2], logit > cellprob_threshold, flow_threshold)
    if labels.shape != tuple(shape):
        size = (shape[1], shape[0])
        grown = expand_labels(labels, distance=2)
        labels = cv2.resize(grown.astype(np.float64), size, interpolation=cv2.INTER_NEAREST_EXACT).astype(np.int32)
        logit = cv2.resize(logit, size, interpolation=cv2.INTER_LINEAR)
        labels[logit <= cellprob_threshold] = 0
    if left_out is not None and min_area_px > 0 and labels.any():
        small = int((np.unique(labels[labels > 0], return_counts=True)[1] < min_area_px).sum())
        left_out.update({too_small(min_area_px): small} if small else {})
    labels = utils.fill_holes_and_remove_small_masks(labels, min_size=min_area_px).astype(np.int32)
    found = Instances.from_labels(labels)
    probability = 1 / (1 + np.exp(-np.clip(logit, -30, 30)))
    total = (
        np.bincount(labels.ravel(), probability.ravel())[np.unique(labels[labels > 0])] if len(found) else np.zeros(0)
    )
    return found.with_scores(np.clip(total / np.maximum(found.areas_px, 1), 0, 1)) if len(found) else found


def _along_flows(flows: np.ndarray, inside: np.ndarray, flow_threshold: float) -> np.ndarray:
    """Return the label image (h, w) int32 of pixels that meet when they follow their flows: cellpose's compute_masks.

    Cellpose takes 200 steps of at most a pixel; a cell whose edge is farther from its middle falls apart there. Here, pixels
    that have come far go on until they stand still.
    """
    import torch
    from cellpose import dynamics

    from cellkit.training import one_thread

    if not inside.any():
        return np.zeros(inside.shape, np.int32)
    device, places, steps = torch.device("cpu"), np.nonzero(inside), flows * inside / 5
    with one_thread(), torch.sparse.check_sparse_tensor_invariants(enable=False):  # said aloud, or torch warns
        ends = dynamics.follow_flows(steps, places, niter=STEPS, device=device).numpy()
        _go_on(steps, np.stack(places), ends)
        found = dynamics.get_masks_torch(
            torch.from_numpy(ends).int(), places, inside.shape, max_size_fraction=LARGEST_SHARE
        )
        if flow_threshold and found.any():
            found = dynamics.remove_bad_flow_masks(found, flows, threshold=flow_threshold, device=device)
    return found.astype(np.int32)


def _go_on(steps: np.ndarray, places: np.ndarray, ends: np.ndarray) -> None:
    """Move the ends (2, n) of ways that began at `places` on, where they have come far and still move; in place."""
    import torch
    from cellpose import dynamics

    far = np.flatnonzero(np.hypot(*(ends - places)) > FAR_PX)
    for _ in range(sum(steps.shape[1:]) // STEPS):
        if not far.size:
            return
        before = ends[:, far]
        ends[:, far] = dynamics.follow_flows(steps, tuple(before), niter=STEPS, device=torch.device("cpu")).numpy()
        far = far[np.hypot(*(ends[:, far] - before)) > STILL_PX]


def diameter_of(instances: Sequence[Instances]) -> float:
    """Return the diameter in px of the circle whose area has the median square root: Cellpose's definition (utils.diameters)."""
    areas = np.concatenate([x.areas_px for x in instances]) if instances else np.zeros(0)
    if not areas.size:
        raise UserError("there is no cell to take a diameter from", "set diameter_px")
    return float(np.median(np.sqrt(areas)) * 2 / np.sqrt(np.pi))


def estimate_diameter(network, images: Sequence[np.ndarray], **thresholds) -> float:
    """Estimate the cell diameter in px of images without labels; say so where the estimate is doubtful.

    Each image is looked at as if its cells were 4, 6, 10, 16 ... px across, in a crop of about eight such cells where the
    image is brightest. Cells are found at their own diameter and at up to four times of it, always of the same size; what
    is found inside cells or in noise changes its size with the look. So that diameter wins at which most looks agree.

    Parameters
    ----------
    images : sequence of (H, W, 3) uint8
        A few of them are enough.
    thresholds
        As for `segment_image`, ``channels`` included.
    """
    from cellkit.loop import progress

    settings = {**{k: v for k, v in DEFAULTS.items() if k != "diameter_px"}, **thresholds, "min_area_px": LEAST_AREA_PX}
    largest = max(max(image.shape[:2]) for image in images)
    sizes = np.exp(np.arange(np.log(LEAST_DIAMETER_PX), np.log(1.1 * max(largest, 8)), 0.05))
    asked = [
        (image, look)
        for image in images
        for look in LOOKS_PX
        if look <= min(2 * max(image.shape[:2]), 2 * LOOKS_PX[-1])
    ]
    agreement = np.zeros(len(sizes))
    for image, look in progress(asked, "cell diameter"):
        part = _brightest(image, round(8 * look))
        found = segment_image(network, part, look, **settings)
        agreement += _agreement(found, look, sizes)
    agreement /= max(len(images), 1)
    best = int(agreement.argmax())
    other = agreement[np.abs(np.log(sizes / sizes[best])) > 0.5]
    rival = sizes[agreement == other.max()][0] if other.size and other.max() > 0.85 * agreement[best] else None
    if agreement[best] == 0:
        say(f"no cell is found at any diameter; {DIAM_PX:g} px is taken. Set the diameter if cells are of another size")
        return DIAM_PX
    if agreement[best] < 0.35 or rival is not None:
        why = f"; {rival:.0f} px fits nearly as well" if rival is not None else ""
        say(
            f"the cell diameter of about {sizes[best]:.0f} px is doubtful{why}: look at the proposals, or set the diameter"
        )
    return float(sizes[best])


def _brightest(image: np.ndarray, side_px: int) -> np.ndarray:
    """Return the part of that size that sends most light."""
    import cv2

    height, width = (min(side_px, side) for side in image.shape[:2])
    total = cv2.integral(image.max(axis=2))
    light = total[height:, width:] - total[:-height, width:] - total[height:, :-width] + total[:-height, :-width]
    y, x = np.unravel_index(light.argmax(), light.shape)
    return image[y : y + height, x : x + width]


def _agreement(found: Instances, look_px: float, sizes_px: np.ndarray) -> np.ndarray:
    """Return how well the cells found with one assumed diameter agree with each size, (N,): summed over looks, up to 1."""
    if not len(found):
        return np.zeros(len(sizes_px))
    height, width = found.shape
    x, y, w, h = found.boxes_xywh.T
    inside = (x > 0) & (y > 0) & (x + w < width) & (y + h < height)
    diameters = 2 * np.sqrt(found.areas_px / np.pi)
    weight = diameters * np.where(inside, 1, 0.3)  # cells that the crop cuts say less
    sure = weight * np.clip(2 * found.scores - 1, 0, 1)
    near = np.exp(-0.5 * (np.log(diameters[:, None] / sizes_px) / 0.18) ** 2)
    several = near.sum(axis=0) / (near.sum(axis=0) + 0.5)  # one object may be anything
    looked = np.exp(-0.5 * (np.log(look_px / sizes_px / 1.3) / 0.5) ** 2) * np.log(LOOKS_PX[1] / LOOKS_PX[0]) / 1.2533
    return looked * several * (sure[:, None] * near).sum(axis=0) / weight.sum()


# ---- training ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Prepared:
    """One training image at network scale: planes (2, h, w) float32, target (3, h, w) float32 = flows times 5, cell or not."""

    planes: np.ndarray
    target: np.ndarray


def prepare(
    image: np.ndarray, truth: Instances, diameter_px: float, cache: Path | None = None, channels: str = "both"
) -> Prepared:
    """Bring one labelled image to network scale (cells of 30 px) and make its target."""
    import cv2

    from cellkit.backends.unet_network import DIAM_MEAN_PX

    planes = two_channels(image, channels)
    labels = truth.paint()
    scale = DIAM_MEAN_PX / diameter_px
    size = (max(8, round(labels.shape[1] * scale)), max(8, round(labels.shape[0] * scale)))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    planes = np.stack([cv2.resize(plane, size, interpolation=how) for plane in planes])
    labels = cv2.resize(labels.astype(np.float64), size, interpolation=cv2.INTER_NEAREST_EXACT).astype(np.int32)
    return Prepared(planes, target_of(labels, cache))


def target_of(labels: np.ndarray, cache: Path | None = None) -> np.ndarray:
    """Return the training target of a label image: flow y, flow x (unit vectors times 5) and 1 inside cells.

    Parameters
    ----------
    labels : (H, W) int32
    cache : Path, optional
        Folder where targets are kept by the sha256 of their labels.

    Returns
    -------
    (3, H, W) float32
    """
    import torch
    from cellpose import dynamics

    from cellkit.files import atomic_path
    from cellkit.labels import relabel
    from cellkit.training import one_thread

    labels = relabel(labels)[0]
    name = hashlib.sha256(np.ascontiguousarray(labels).tobytes() + str(labels.shape).encode()).hexdigest()[:24] + ".npy"
    if cache is not None and (cache / name).is_file():
        flows = np.load(cache / name, allow_pickle=False).astype(np.float32)
    else:
        with one_thread():
            flows = dynamics.masks_to_flows_gpu(labels, device=torch.device("cpu"))[0].astype(np.float32)
        if cache is not None:
            with atomic_path(cache / name) as temporary:
                np.save(temporary, flows.astype(np.float16))
    return np.concatenate([5 * flows.astype(np.float16).astype(np.float32), (labels > 0)[None]]).astype(np.float32)


def crop(item: Prepared, rng: np.random.Generator, size_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a turned, flipped, scaled crop of an image and its target; flows turn with it.

    Returns
    -------
    planes : (2, size, size) float32
    target : (3, size, size) float32
    """
    import cv2

    warp, turned = random_warp(item.target[2], rng, size_px)
    both = np.ascontiguousarray(np.concatenate([item.planes, item.target]).transpose(1, 2, 0))
    both = cv2.warpAffine(both, warp, (size_px, size_px), flags=cv2.INTER_LINEAR).transpose(2, 0, 1)
    planes, flow_y, flow_x, cell = both[:2], both[2], both[3], both[4] > 0.5
    turned_y = turned[1, 0] * flow_x + turned[1, 1] * flow_y
    turned_x = turned[0, 0] * flow_x + turned[0, 1] * flow_y
    return vary(planes, rng), np.stack([turned_y, turned_x, cell]).astype(np.float32)


def random_warp(cells: np.ndarray, rng: np.random.Generator, size_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a place, an angle, a flip and a zoom for a crop; seven in ten are placed near a cell.

    Parameters
    ----------
    cells : (H, W)
        Non-zero inside cells.

    Returns
    -------
    warp : (2, 3) float64
        Source (x, y, 1) -> crop (x, y), for cv2.warpAffine.
    turned : (2, 2) float64
        Its rotation and flip alone: what happens to a unit vector (x, y).
    """
    height, width = cells.shape
    angle, zoom, flip = rng.uniform(0, 2 * np.pi), rng.uniform(0.75, 1.25), 1 - 2 * rng.integers(2)
    inside = np.flatnonzero(cells) if rng.random() < 0.7 else np.zeros(0, int)
    if inside.size:
        y, x = np.divmod(inside[rng.integers(inside.size)], width)
        y, x = y + rng.uniform(-0.3, 0.3) * size_px, x + rng.uniform(-0.3, 0.3) * size_px
    else:
        y, x = rng.uniform(0, height), rng.uniform(0, width)
    half = size_px / zoom / 2.8  # keep most of the crop inside the image
    y, x = (np.clip(v, min(half, n / 2), max(n - half, n / 2)) for v, n in ((y, height), (x, width)))
    cos, sin = np.cos(angle), np.sin(angle)
    turned = np.array([[cos * flip, -sin], [sin * flip, cos]])
    shift = size_px / 2 - zoom * turned @ np.array([x, y])
    return np.column_stack([zoom * turned, shift]), turned


def vary(planes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Vary brightness, contrast, gamma and noise, per channel; an empty channel stays empty."""
    out = planes.copy()
    for plane in out:
        if plane.any():
            gamma, gain, noise = np.exp(rng.uniform(-0.35, 0.35)), rng.uniform(0.8, 1.25), rng.uniform(0, 0.06)
            plane[:] = np.sign(plane) * np.abs(plane) ** gamma * gain
            plane += noise * rng.standard_normal(plane.shape, np.float32) * (rng.random() < 0.5)
    return out


def best_thresholds(
    network,
    pairs: Sequence[tuple[np.ndarray, Instances]],
    settings: dict,
    searched: Sequence[str] = tuple(GRID),
    called: str = "MAP IoU",
) -> dict[str, float]:
    """Search thresholds one after the other by MAP IoU (kaggle) on labelled images; the network runs once per image.

    Give training images: validation images are to judge by.

    Parameters
    ----------
    settings : dict
        As for `segment_image`; the thresholds in it are where the search begins.
    searched : sequence of str
        Which of `GRID`; a threshold that was set stays.
    called : str
        What the search is said to go by: agreement, where the labels are a model's proposals.

    Returns
    -------
    dict
        The thresholds that were searched; of equal ones the first in `GRID`.
    """
    from cellkit.loop import progress
    from cellkit.scores import kaggle, overlaps

    if not searched:
        return {}
    cached = [
        (predict_maps(network, image, settings["diameter_px"], settings["channels"]), truth)
        for image, truth in progress(pairs, "maps of training images")
    ]
    best = {key: settings[key] for key in (*GRID, "min_area_px")}
    if not any((maps[2] > min(GRID["cellprob_threshold"])).any() for maps, _ in cached):
        say(f"no threshold is searched: the network finds no cell in {len(pairs)} training images at any of them")
        return {key: DEFAULTS[key] for key in searched}

    def score(key: str, value: float) -> float:
        found = (overlaps(truth, masks_of(maps, truth.shape, **{**best, key: value})) for maps, truth in cached)
        return kaggle(list(found), bootstrap=0)["score"]

    return search(score, {key: GRID[key] for key in searched}, best, len(pairs), called)


class Loss:
    """Step number -> loss: half the squared error of the flows plus the cross entropy of the cell probability."""

    def __init__(self, network, items: Sequence[Prepared], batch_size: int, crop_px: int, seed: int):
        self.network, self.items, self.batch_size, self.crop_px, self.seed = network, items, batch_size, crop_px, seed

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw the batch of a step: planes (B, 2, size, size) and targets (B, 3, size, size)."""
        rng = np.random.default_rng([self.seed, step])
        chosen = rng.permutation(len(self.items))[: self.batch_size]
        chosen = np.resize(chosen, self.batch_size)
        pairs = [crop(self.items[i], rng, self.crop_px) for i in chosen]
        return np.stack([p for p, _ in pairs]), np.stack([t for _, t in pairs])

    def __call__(self, step: int):
        """Return the loss tensor of a step."""
        import torch

        from cellkit.training import device_and_dtype

        device, dtype = device_and_dtype()
        planes, target = (torch.from_numpy(x).to(device) for x in self.batch(step))
        planes = planes.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            maps = self.network(planes)
        return flow_loss(maps.float(), target)


def ceiling(labelled: CellDataset, config: Any, most: int = 4) -> float:
    """Return MAP IoU (kaggle) of decode(encode(labels)) against the labels, on up to `most` images: what no training beats.

    Encoding and decoding are those of training and prediction: to 30 px per cell, to flows, along the flows, and back.
    """
    from cellkit.scores import kaggle, overlaps

    settings = _settings(config, {})
    diameter = settings.pop("diameter_px") or diameter_of(labelled.instances)
    channels = settings.pop("channels")
    pairs = []
    refuse_small(labelled, config, "finetune")
    for k in spread(len(labelled), most):
        image, truth = labelled[k]
        maps = prepare(image, truth, diameter, channels=channels).target.copy()
        maps[2] = np.where(maps[2] > 0, 6, -6)
        pairs.append(overlaps(truth, masks_of(maps, truth.shape, **settings)))
    return kaggle(pairs, bootstrap=0)["score"]


def refuse_small(labelled: CellDataset, config: Any, section: str) -> None:
    """Say how many labelled cells are below the section's min_area_px and can never be found; refuse where all are."""
    key = f"{section}.min_area_px"
    least = _settings(config, {})["min_area_px"]
    small, cells, largest = say_small(labelled.records, labelled.instances, least, key, "can never be found")
    if cells and small == cells:
        raise UserError(f"{key} is {least}, and the largest of {cells} labelled cells has {largest} px", f"lower {key}")


def flow_loss(maps, target):
    """Return Cellpose's loss (train.py): 0.5 mean((flow - 5 flow_true)^2) + binary cross entropy of the probability."""
    from torch.nn import functional as F

    flows = 0.5 * F.mse_loss(maps[:, :2], target[:, :2])
    return flows + F.binary_cross_entropy_with_logits(maps[:, 2], target[:, 2])


class _Scorer:
    """() -> MAP IoU (kaggle convention, mean of whole images) of the network on the validation images."""

    def __init__(self, network, pairs: Sequence[tuple[np.ndarray, Instances]], settings: dict, base: str = ""):
        self.network, self.pairs, self.settings, self.base = network, pairs, settings, base

    def __call__(self) -> float:
        from cellkit.loop import progress
        from cellkit.scores import kaggle, overlaps

        found = [segment_image(self.network, image, **self.settings) for image, _ in progress(self.pairs, "validation")]
        score = kaggle([overlaps(t, x) for (_, t), x in zip(self.pairs, found, strict=True)], bootstrap=0)["score"]
        if self.base not in ("", "scratch") and not score and any(len(truth) for _, truth in self.pairs):
            say(unpromising(self.base, sum(map(len, found)), len(self.pairs), self.settings))
        self.base = ""  # said once, of the weights that training starts from
        return score


def unpromising(base: str, cells: int, images: int, settings: Mapping[str, Any]) -> str:
    """Return what to say of a base that finds no cell right before training, and what to try.

    Examples
    --------
    >>> print(unpromising("starter", 0, 4, {"diameter_px": 31.0, "channels": "both"}))
    before training, starter finds no cell in 4 validation images: training starts from nothing useful.
    Try another base (finetune.base: cyto3), finetune.diameter_px (now 31) or finetune.channels (now both).
    """
    what = "no cell" if not cells else f"{cells} objects and no cell right"
    return (
        f"before training, {base} finds {what} in {images} validation images: training starts from nothing useful.\n"
        f"Try another base (finetune.base: cyto3), finetune.diameter_px (now {settings['diameter_px']:.3g}) "
        f"or finetune.channels (now {settings['channels']})."
    )


def spread(count: int, wanted: int) -> list[int]:
    """Return `wanted` positions evenly spread over `count`; all of them for 0."""
    if not wanted or wanted >= count:
        return list(range(count))
    return np.linspace(0, count - 1, wanted).round().astype(int).tolist()


def fingerprint(network, items: Sequence, plan, *rest) -> str:
    """Return a hash of the start weights, the data and the plan: what makes a training the same training."""
    digest = hashlib.sha256(json.dumps([repr(plan), *map(str, rest)]).encode())
    for value in network.state_dict().values():
        digest.update(value.detach().cpu().numpy().tobytes())
    for item in items:
        for array in item if isinstance(item, tuple) else (item.planes, item.target):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def search(
    score: Callable[[str, float], float],
    grid: Mapping[str, Sequence[float]],
    best: dict[str, Any],
    images: int,
    called: str = "MAP IoU",
) -> dict[str, float]:
    """Set thresholds one after the other to the value that scores best, the first of equal ones; say what each scored.

    Parameters
    ----------
    score : callable
        (name, value) -> MAP IoU with that value and the others as `best` says.
    grid : mapping
        Name -> the values to try.
    best : dict
        Where the search begins; its thresholds are set on the way.
    images : int
        How many images the score is of, to be said.
    called : str
        What the score is, to be said.
    """
    from cellkit.loop import progress

    tried: dict[str, dict[float, float]] = {key: {} for key in grid}
    for key, value in progress([(key, value) for key, values in grid.items() for value in values], "thresholds"):
        tried[key][value] = score(key, value)
        if len(tried[key]) == len(grid[key]):
            best[key] = max(tried[key], key=tried[key].get)
            told = ", ".join(f"{value:g}: {found:.3f}" for value, found in tried[key].items())
            say(f"{key} {best[key]:g}, by {called} on {images} training images ({told})")
            if not any(tried[key].values()):
                say(f"no threshold of {', '.join(grid)} finds a cell right: train longer, or start from another base")
                break
    return {key: best[key] for key in grid}


def say(text: str) -> None:
    """Print a line on stderr, at once."""
    print(text, file=sys.stderr, flush=True)
