"""Cells from points: a network that is asked of every coordinate whether a cell is there; peaks of its answers grow into masks.

It is made to count and to point, and trains in minutes. Its outlines are those of a seeded watershed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from cellkit.cells.instances import Instances
from cellkit.cells.leftout import too_small
from cellkit.finding import opens_again
from cellkit.models.coordinate_windows import CoordinatesInWindows
from cellkit.models.shared.contract import (
    SMALLEST,
    Area,
    Channels,
    Computed,
    Diameter,
    Schedule,
    Segmenter,
    Share,
    merged,
)
from cellkit.models.shared.cost import BATCH, Cost, Course, timed_cost
from cellkit.models.shared.fine_tuning import (
    chosen_by,
    images_to_search,
    refuse_untrainable,
    save_tuned,
    scored_along,
)
from cellkit.models.shared.inputs import SHOWN, Doubts, refuse_empty
from cellkit.models.shared.parts import held_parts, history_of
from cellkit.models.training import fingerprint, fit, plan_of, random_state_kept
from cellkit.models.training_state import History
from cellkit.settings import Number

if TYPE_CHECKING:
    from cellkit.cells.dataset import CellDataset

NAME = "coordinate"
TITLE = "Coordinates"
REQUIRES = ("torch", "skimage")
BYTES_PER_PX = (
    60  # of memory, of the image; measured: 31 to 42 bytes at 1024, 2048 and 3072 px, 57 with the map at 2048
)
SQUARE_BYTES = 250_000_000  # of memory that a map of 224 x 224 coordinates takes; measured: 138 MB, of 448 x 448 465 MB
DEFAULTS = {
    "channels": "both",
    "diameter_px": 30.0,
    "square_px": 224,
    "peak_threshold": 0.5,
    "blur_px": 1.0,
    "peak_distance_px": 3,
    "outline": "probability",
    "min_area_px": 15,
    "precision": "auto",
}


class Settings(Computed):
    """What may change from prediction to prediction; null = as the checkpoint's card says."""

    diameter_px: Diameter | None = Field(None, description="typical cell diameter (px): how far masks may grow")
    channels: Channels | None = Field(None, description="what the network is shown; null = as it was trained")
    peak_threshold: Share | None = Field(None, description="probability above which a peak is a cell")
    blur_px: Number | None = Field(
        None, ge=0, le=20, description="standard deviation of the blur before peaks are looked for (px of the square)"
    )
    peak_distance_px: int | None = Field(
        None, ge=1, le=200, description="of two peaks nearer than this the higher one counts (px of the square)"
    )
    outline: Literal["probability", "nuclei", "cytoplasm", "both"] | None = Field(
        None, description="what masks are cut out of: the network's map, or the brightness of a channel"
    )
    min_area_px: Area | None = Field(None, description=SMALLEST)


class TrainSettings(Schedule, Settings):
    """Settings of a training; null = best on the validation images that choose, or on training images where none does."""

    steps: int = Field(500, ge=1, description="most optimiser steps of each network")
    parts: int = Field(
        3,
        ge=1,
        le=20,
        description="networks, each taught by all training images but its part: thresholds are found on images that their "
        "network has not seen, and answers are the mean of all; 1 = one network, and the images that choose its weights choose "
        "its thresholds too",
    )
    batch_size: int = Field(8, ge=1, description="images per step")
    crop_px: int = Field(
        224,
        ge=32,
        multiple_of=8,
        description="height and width of the square that an image is brought to; each of its pixels is asked for (px)",
    )
    learning_rate: Number = Field(3e-3, gt=0, le=1, description="largest learning rate")
    average_steps: int = Field(
        50,
        ge=0,
        le=10**6,
        description="steps over which the weights are averaged, exponentially, to be scored and kept; 0 = not averaged",
    )
    eval_every: int = Field(250, ge=1, description="steps between two scores on validation images")
    depth: bool = Field(
        True,
        description="what is learned of a coordinate in a cell: true = 0.5 at its edge to 1 in its middle, so that cells that "
        "touch have a peak each; false = 1",
    )
    diameter_px: Diameter | None = Field(None, description="typical cell diameter (px); null = from the labels")
    channels: Channels = Field("both", description="what the network is shown")
    min_area_px: Area = Field(15, description=SMALLEST)


# ---- the contract --------------------------------------------------------------------------------------------------
@opens_again
def load(checkpoint: Path, settings: Settings | None = None) -> Segmenter:
    """Return a function from a stream of (H, W, 3) uint8 images to their cells, in order.

    Parameters
    ----------
    settings : Settings, optional
        What is None comes from the card.

    Raises
    ------
    UserError
        No checkpoint there, or one of another network.
    """
    from cellkit.models import weights
    from cellkit.models.coordinate_network import opened

    used = merged(settings, weights.card_for(checkpoint, NAME).config, DEFAULTS)
    ask = _Asked(opened(weights.load_tensors(checkpoint), used["precision"]), used)
    doubts = Doubts(used["channels"], ("both", "cytoplasm", "nuclei"))

    def find(image: np.ndarray, left_out: Counter[str]) -> Instances:
        found = cells_of(image, ask(image), used)
        small = found.areas_px < used["min_area_px"]
        if small.any():
            left_out[too_small(used["min_area_px"])] += int(small.sum())
        found = found[~small]
        doubts.note(image, found, left_out)
        return found

    square_bytes = SQUARE_BYTES * (used["square_px"] / 224) ** 2
    size = lambda shape: round(BYTES_PER_PX * shape[0] * shape[1] + square_bytes)  # noqa: E731
    return Segmenter(find, used, size, lambda whole: CoordinatesInWindows(ask.of_square, used, whole))


@random_state_kept()
def train(train: CellDataset, val: CellDataset, config: TrainSettings, out: Path) -> Path:
    """Train from random weights on the labelled images of `train`; `val` chooses as for `cellkit.models.cellpose_unet.train`.

    Each of `parts` networks leaves out a part of the training images, and these choose the thresholds (`shared.parts`). Of a
    single network, the images that choose the weights do; where none does, training images.

    Parameters
    ----------
    out : Path
        Folder for the resume states, ``history.csv``, the mean of the networks', and the checkpoint.

    Returns
    -------
    Path
        ``coordinate.safetensors``; its card holds the thresholds and the validation score.

    Raises
    ------
    UserError
        Nothing to train on, or nothing in the channels that the network is shown.
    """
    from cellkit.models.coordinate_network import Together, prepare
    from cellkit.models.shared.diameter import diameter_of
    from cellkit.parallel import progress

    refuse_untrainable(train, "min_area_px")
    given = {"square_px": config.crop_px, "diameter_px": config.diameter_px or diameter_of(train.instances)}
    used = merged(config, given, DEFAULTS)
    each = progress(range(len(train)), "training images")
    items = [prepare(*train[k], config.channels, config.crop_px) for k in each]
    refuse_empty([item.planes for item in items], train, SHOWN[config.channels], "channels")
    scored, choosing = scored_along(val, config.val_images)
    held, pairs = held_parts(train, config.parts, config.seed), [val[k] for k in scored]
    networks, histories = [], []
    for number, own in enumerate(held):
        teach = [item for item, left_out in zip(items, own, strict=True) if not left_out]
        folder = Path(out) / f"part_{number + 1}" if len(held) > 1 else Path(out)
        network, history = _taught(teach, pairs, choosing, config, used, number, folder, val.compared_by("point score"))
        networks.append(network)
        histories.append(history)
    network = Together(networks) if len(networks) > 1 else networks[0]
    history = history_of(histories)
    history.write(Path(out) / "history.csv")
    seen = _unseen(networks, held, train, used) if len(held) > 1 else _seen(network, pairs if choosing else [], used)
    labelled = images_to_search(train)[0]
    used |= _searched(seen or _seen(network, labelled, used), network, labelled, config, used)
    return save_tuned(
        Path(out) / "coordinate.safetensors",
        NAME,
        network,
        {**used, "precision": config.precision},
        history,
        val,
        scored if choosing else [],
        "point_validation",
        "point: 2 hits / (found + cells), of whole validation images together",
        base="scratch",
        networks=len(networks),
    )


def steps_of(config: TrainSettings, images: int) -> int:
    """Return the steps of all networks together."""
    return config.steps * max(min(config.parts, images), 1)


def course_of(config: TrainSettings, images: int) -> Course:
    """Return what a training does: a network for each part, which looks at that part in the end; all answer together."""
    parts = max(min(config.parts, images), 1)
    several = parts > 1
    return Course(networks=parts, answers=parts, unseen=float(several), searched=several)


def seen_px(shape: tuple[int, int], config: TrainSettings, cells: float = 0) -> int:
    """Return how many pixels the network sees of an image of any size: those of the square that it is brought to."""
    return config.crop_px**2


def cost(config: TrainSettings, image: np.ndarray, truth: Instances) -> Cost:
    """Return what a training costs here, timed on one image."""
    from cellkit.models.coordinate_network import CoordinateLoss, built, prepare

    network = built(config.seed, config.precision)
    used = merged(config, {"square_px": config.crop_px}, DEFAULTS)
    item = prepare(image, truth, config.channels, config.crop_px)
    return timed_cost(
        network,
        CoordinateLoss(network, [item], BATCH, config.seed, config.depth),
        (config.crop_px, config.crop_px),
        lambda: prepare(image, truth, config.channels, config.crop_px),
        lambda: cells_of(image, _Asked(network, used)(image), used),
        lambda: _searched(_seen(network, [(image, truth)], used), network, [(image, truth)], config, used),
    )


# ---- images in, cells out ------------------------------------------------------------------------------------------
def answers_of(checkpoint: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function image (H, W, 3) uint8 -> probability that a cell is there, of every pixel of its square (S, S)."""
    from cellkit.models import weights
    from cellkit.models.coordinate_network import opened

    used = merged(None, weights.card_for(checkpoint, NAME).config, DEFAULTS)
    return _Asked(opened(weights.load_tensors(checkpoint), used["precision"]), used)


class _Asked:
    """Image -> the probability that a cell is there, of every pixel of the square that it is brought to."""

    def __init__(self, network: Any, used: dict[str, Any]):
        self.network, self.channels, self.size, self.places = network, used["channels"], used["square_px"], None

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Return (S, S) float32 of an image (H, W, 3) uint8."""
        from cellkit.models.coordinate_network import squared

        return self.of_square(squared(image, self.channels, self.size))

    def of_square(self, planes: np.ndarray) -> np.ndarray:
        """Return (S, S) float32 of an image that was brought to its square, (2, S, S) float32."""
        import torch

        if not planes.any():  # nothing is shown of it
            return np.zeros((self.size, self.size), np.float32)
        on = self.network.arithmetic
        with torch.no_grad(), on.autocast():
            if self.places is None:
                self.places = self.network.place_table(self.size)
            logits = self.network.map(torch.from_numpy(planes)[None].to(on.device), self.places)
        return logits[0].float().sigmoid().cpu().numpy()


def cells_of(image: np.ndarray, inside: np.ndarray, used: dict[str, Any]) -> Instances:
    """Return the cells of an image (H, W, 3) uint8 from the map of where they are, scored by the height of their peaks."""
    from cellkit.models.coordinate_cells import PEAKS, grow, in_image, peaks

    places, heights = peaks(inside, *(used[name] for name in PEAKS))
    points = in_image(places, len(inside), image.shape[:2])
    return grow(image, inside, points, used["diameter_px"], used["outline"], heights)


# ---- training ------------------------------------------------------------------------------------------------------
def _score(network: Any, pairs: Sequence[tuple[np.ndarray, Instances]], used: dict[str, Any]) -> float:
    """Return the point score of labelled images; nan of none."""
    from cellkit.models.coordinate_cells import PEAKS, in_image, peaks, point_score

    ask = _Asked(network, used)
    found = [peaks(ask(image), *(used[name] for name in PEAKS)) for image, _ in pairs]
    truths = [truth for _, truth in pairs]
    points = [in_image(places, ask.size, truth.shape) for (places, _), truth in zip(found, truths, strict=True)]
    return point_score(truths, points, [heights for _, heights in found]) if pairs else np.nan


def _taught(
    items: Sequence[Any],
    pairs: Sequence[tuple[np.ndarray, Instances]],
    choosing: bool,
    config: TrainSettings,
    used: dict[str, Any],
    number: int,
    out: Path,
    called: str,
) -> tuple[Any, History]:
    """Train one network, the `number`th, and return it with its history."""
    from cellkit.models.coordinate_network import CoordinateLoss, built

    seed = config.seed + number
    network = built(seed, config.precision)
    loss_at = CoordinateLoss(network, items, config.batch_size, seed, config.depth)
    plan = plan_of(config, NAME)
    stamp = fingerprint(
        network, [*items, *chosen_by(pairs, choosing)], plan, used, config.batch_size, seed, config.depth, choosing
    )
    score = lambda: _score(network, pairs, used)  # noqa: E731
    return network, fit(network, loss_at, score, plan, out, stamp, NAME, choosing, called)


def _seen(network: Any, pairs: Sequence[tuple[np.ndarray, Instances]], used: dict[str, Any]) -> list[Any]:
    """Return labelled images with what a network says of them."""
    from cellkit.models.coordinate_cells import Seen

    ask = _Asked(network, used)
    return [Seen(image, ask(image), truth) for image, truth in pairs]


def _unseen(networks: Sequence[Any], held: np.ndarray, train: CellDataset, used: dict[str, Any]) -> list[Any]:
    """Return the training images, each with what the network says of it that has not learned from it.

    Images whose labels a model proposed are left out where a person labelled any.
    """
    from cellkit.parallel import progress

    known = train.without_proposed() or train
    names, seen = {record.image_id for record in known.records}, []
    for network, own in zip(networks, held, strict=True):
        part = train.subset(own & [record.image_id in names for record in train.records])
        seen += _seen(network, [part[k] for k in progress(range(len(part)), "images that were held back")], used)
    return seen


def _searched(
    seen: Sequence[Any],
    network: Any,
    training: Sequence[tuple[np.ndarray, Instances]],
    config: TrainSettings,
    used: dict[str, Any],
) -> dict[str, Any]:
    """Return how peaks are found and masks cut: as set, else best on labelled images: `seen`, and for masks `training`."""
    from cellkit.models.coordinate_cells import PEAKS, search_outline, search_peaks

    found = search_peaks(seen, {name: getattr(config, name) for name in PEAKS})
    if config.outline is None:
        found["outline"] = search_outline(_seen(network, training, used), used["diameter_px"])
    return found
