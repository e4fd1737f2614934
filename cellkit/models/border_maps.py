"""The U-Net with touching border applied to an image, the search of how it is best read, and its scores along a training."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.errors import counted
from cellkit.log import LOG
from cellkit.models.border_batches import Prepared, planes_at
from cellkit.models.border_target import decode
from cellkit.models.shared.fine_tuning import map_iou
from cellkit.models.shared.inputs import NORMALISE
from cellkit.models.shared.processes import of_first
from cellkit.models.shared.threshold_search import Searched, choose, grid_of
from cellkit.models.shared.tiles import blend_tiles
from cellkit.scores.iou import overlaps, scorable
from cellkit.scores.kaggle import kaggle

TILE_PX, OVERLAP_PX = 1024, 128
GRID: dict[str, tuple] = {  # what may be combined, the default first; least areas are shares of the median cell's
    "border_weight": (1.0, 0.5, 2.0),
    "seed_threshold": (0.5, 0.3, 0.7),
    "cell_threshold": (0.5, 0.4, 0.6),
    "min_area_px": (0.025, 0.05, 0.1, 0.2, 0.3),
}
READ = {"border_weight": 1.0, "seed_threshold": 0.5, "cell_threshold": 0.5, "min_area_px": 15}
SHOWN = {"diameter_px": None, "channels": "both", "normalise": NORMALISE}


def predict_maps(
    network: Any, image: np.ndarray, diameter_px: float, channels: str, normalise: tuple[float, float]
) -> np.ndarray:
    """Return the probability of each class of pixels at network scale, (K + 2, h, w) float32; they sum to 1.

    Parameters
    ----------
    image : (H, W, 3) uint8
    diameter_px : float
        Of its cells; it is scaled so that they become 30 px wide.
    """
    planes = planes_at(image, diameter_px, channels, normalise)
    return blend_tiles(lambda tile: forward(network, tile), planes, TILE_PX, OVERLAP_PX)


def forward(network: Any, planes: np.ndarray) -> np.ndarray:
    """Return the probabilities of planes (C, h, w), mirrored at the edge up to what the network halves: (K + 2, h, w) float32."""
    import torch

    height, width = planes.shape[1:]
    step = network.step_px
    padded = np.pad(planes, ((0, 0), (0, -height % step), (0, -width % step)), mode="symmetric")
    with torch.no_grad(), network.arithmetic.autocast():
        logits = network(network.arithmetic.placed(torch.from_numpy(padded)[None]))
    return torch.softmax(logits.float(), dim=1)[0, :, :height, :width].cpu().numpy()


def segment_image(
    network: Any, image: np.ndarray, settings: Mapping[str, Any], left_out: Counter[str] | None = None
) -> Instances:
    """Find the cells of an image (H, W, 3) uint8; `settings` are those of `SHOWN` and of `READ`."""
    maps = predict_maps(network, image, *(settings[key] for key in SHOWN))
    return decode(maps, image.shape[:2], *(settings[key] for key in READ), left_out=left_out)


class Scorer:
    """() -> MAP IoU (kaggle) of the network on validation images, and the IoU of each class of pixels in all of them.

    Parameters
    ----------
    pairs : sequence of (image, Instances)
    targets : sequence of Prepared
        Of the same images.
    settings : mapping
        As for `segment_image`.
    kinds : sequence of str
        Names of the classes of pixels: background, interiors, border.
    """

    def __init__(
        self,
        network: Any,
        pairs: Sequence[tuple[np.ndarray, Instances]],
        targets: Sequence[Prepared],
        settings: Mapping[str, Any],
        kinds: Sequence[str],
    ):
        self.network, self.pairs, self.targets, self.settings, self.kinds = network, pairs, targets, settings, kinds

    def __call__(self) -> tuple[float, dict[str, float]]:
        """Return the score, and ``iou_<class of pixels>`` for each; a class that is nowhere has none."""
        from cellkit.parallel import progress

        counts, found = np.zeros((3, len(self.kinds))), []
        shown, read = ([self.settings[key] for key in part] for part in (SHOWN, READ))
        for (image, truth), item in progress(list(zip(self.pairs, self.targets, strict=True)), "validation"):
            maps = predict_maps(self.network, image, *shown)
            found.append((truth, decode(maps, truth.shape, *read)))
            known = item.target < len(self.kinds)
            said, right = maps.argmax(axis=0)[known], item.target[known]
            both = said[said == right]
            counts += [np.bincount(one, minlength=len(self.kinds)) for one in (both, said, right)]
        either = counts[1] + counts[2] - counts[0]
        ious = np.divide(counts[0], either, out=np.full(len(self.kinds), np.nan), where=either > 0)
        score = of_first(map_iou(found))
        return score, {f"iou_{kind}": round(float(iou), 4) for kind, iou in zip(self.kinds, ious, strict=True)}


def search_settings(
    network: Any,
    pairs: Sequence[tuple[np.ndarray, Instances]],
    settings: Mapping[str, Any],
    searched: Sequence[str],
    called: str = "MAP IoU",
) -> Searched:
    """Search how a network's maps are best read, by MAP IoU (kaggle) on labelled images; the network runs once per image.

    Of all combinations the one nearest to the defaults is taken that is not clearly worse than the best, see
    `cellkit.models.shared.fine_tuning.nearest_to_default`.

    Parameters
    ----------
    pairs : sequence of (image, Instances)
        Training images: validation images are to judge by.
    settings : mapping
        As for `segment_image`; what is not searched stays as it is there.
    searched : sequence of str
        Which of `GRID`.
    called : str
        What the search is said to go by.
    """
    from cellkit.parallel import progress

    if not searched:
        return Searched({}, {})
    begun, truths = time.monotonic(), [truth for _, truth in pairs]
    grid, shown = grid_of(settings, searched, truths, GRID), [settings[key] for key in SHOWN]
    maps = [predict_maps(network, image, *shown) for image, _ in progress(pairs, "maps to search on")]
    least = {key: values[:1] for key, values in grid.items()} | {"min_area_px": (0,)}
    if not any(score_maps(*pair, least).any() for pair in zip(maps, truths, strict=True)):
        LOG.info(f"the network finds no cell right in {counted(len(pairs), 'training image')}, so nothing is searched")
        return Searched({key: grid[key][0] for key in searched}, {})
    each = progress(list(zip(maps, truths, strict=True)), "search on images")
    scores = np.stack([score_maps(*pair, grid) for pair in each])
    return choose(scores, grid, searched, sum(map(len, truths)), called, time.monotonic() - begun)


def score_maps(maps: np.ndarray, truth: Instances, grid: Mapping[str, Sequence]) -> np.ndarray:
    """Return the MAP IoU of an image at every combination of a grid, an axis for each of its settings.

    Parameters
    ----------
    maps : (K + 2, h, w) float32
        Probabilities, as `predict_maps` returns them.
    grid : mapping
        Values of the settings in `READ`, in that order.
    """
    *cuts, areas = grid.values()
    scores = np.zeros([len(values) for values in grid.values()])
    every = np.ones(len(truth), bool)
    for place in np.ndindex(*scores.shape[:-1]):
        found = decode(maps, truth.shape, *(values[k] for values, k in zip(cuts, place, strict=True)))
        pairs = overlaps(truth, scorable(truth, found))
        for a, least in enumerate(areas):
            kept = pairs.select(every, pairs.found_areas_px >= least)
            scores[*place, a] = kaggle([kept], bootstrap=0)["score"]
    return scores
