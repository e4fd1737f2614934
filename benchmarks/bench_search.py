"""Time the search of the U-Net's settings, and show what it is worth: `python benchmarks/bench_search.py [--runs FOLDER ...]`.

The first table compares the search from kept maps with running the network again for each combination, on one drawn image;
that both find the same masks, and score them alike, is asserted. The second takes finished runs: settings are searched on 6
training images and judged on 12 others, with the starter weights as they are. Maps are kept below `--cache`, so a second call
goes on where the first was stopped. A run that is not there is skipped. MAP IoU (kaggle); tables are markdown.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cellkit.cells.drawn.camera import expose
from cellkit.cells.drawn.field import draw_field
from cellkit.cells.drawn.style import FieldStyle
from cellkit.cells.instances import Instances
from cellkit.errors import UserError
from cellkit.fetch.find import find_weights
from cellkit.formats.coco_reading import read_coco
from cellkit.manifest import read_manifest
from cellkit.models import get_backend
from cellkit.models.map_cache import MapCache
from cellkit.models.shared.diameter import diameter_of
from cellkit.models.shared.fine_tuning import map_iou, nearest_to_default
from cellkit.models.shared.flows import masks_of
from cellkit.models.shared.threshold_search import grid_of
from cellkit.models.unet_maps import predict_maps, segment_image
from cellkit.models.unet_network import load_network
from cellkit.models.unet_search import DEFAULTS, GRID, SEARCHED, score_image

LEARN, JUDGE, LEAST_RATIO = 6, 12, 50
NORMALISE = (
    (1.0, 99.0),
    (0.0, 100.0),
)  # tried here; not searched, because it gains nothing, as the diameter of each image


# ---- how fast ------------------------------------------------------------------------------------------------------
def drawn_image(side_px: int = 256) -> tuple[np.ndarray, Instances]:
    style = FieldStyle(size_px=(side_px, side_px), diameter_px=40.0)
    field = draw_field(("HEK",), style, [11, 0])
    planes = [np.clip(plane / np.percentile(plane, 99.8) * 255, 0, 255) for plane in expose(field, style, [11, 0, 1])]
    nuclei, cytoplasm = (plane.astype(np.uint8) for plane in planes)
    return np.stack([np.zeros_like(nuclei), cytoplasm, nuclei], axis=-1), Instances.from_labels(field.labels)


def seconds(job) -> float:
    begun = time.process_time()
    job()
    return time.process_time() - begun


def show_speed(network, repeats: int) -> None:
    """Print the table of times; end with an error where masks differ or the search is not fast enough."""
    image, truth = drawn_image()
    settings = {**DEFAULTS, "diameter_px": diameter_of([truth])}
    grid = grid_of(settings, list(SEARCHED), [truth], GRID)
    some = [(0, 0, 0, 0), (0, 1, 2, 3), (0, 3, 1, 6), (0, 2, 3, 1)]
    with tempfile.TemporaryDirectory() as folder:
        cache = MapCache(network, Path(folder), 1.0)
        scores = score_image(network, image, truth, settings, grid, cache)
        maps = predict_maps(network, image, settings["diameter_px"], cache=cache)
        for place in some:
            read = {**settings, **{key: values[k] for (key, values), k in zip(grid.items(), place, strict=True)}}
            again = segment_image(network, image, **read)
            thresholds = [read[key] for key in ("flow_threshold", "cellprob_threshold", "min_area_px")]
            assert again == masks_of(maps, truth.shape, *thresholds), f"other masks at {read}"
            assert map_iou([(truth, again)]) == scores[place], f"another score at {read}"
        one = [seconds(lambda: map_iou([(truth, segment_image(network, image, **read))])) for _ in range(repeats)]
        search = [seconds(lambda: score_image(network, image, truth, settings, grid, cache)) for _ in range(repeats)]
    each, whole = float(np.median(one)) * scores.size, float(np.median(search))
    print(
        f"\n| {scores.size} combinations, one image of {image.shape[0]} px, {len(truth)} cells | processor s |\n|---|---:|"
    )
    print(
        f"| the network run for each (measured once, times {scores.size}) | {each:.1f} |\n| from kept maps | {whole:.2f} |"
    )
    print(f"| ratio | {each / whole:.0f} |")
    if each < LEAST_RATIO * whole:
        sys.exit(f"the search is {each / whole:.0f} times as fast, wanted {LEAST_RATIO}")


# ---- how much better -----------------------------------------------------------------------------------------------
def one_after_the_other(scores: np.ndarray) -> tuple[int, ...]:
    """Return the place that cellkit 0.1 took before: flow threshold, then cell probability, the best by mean."""
    mean = scores.mean(axis=0)
    flow = int(mean[0, 0, :, 0, 0].argmax())
    return 0, 0, flow, int(mean[0, 0, flow, :, 0].argmax()), 0


def choices(scores: np.ndarray) -> dict[str, tuple[int, ...]]:
    """Return what each way to search takes: a place in (normalise, diameter_of, flow, cellprob, least area)."""
    parts = {
        "thresholds together": np.s_[:, :1, :1, :, :, :1],
        "and the least area (what is searched)": np.s_[:, :1, :1],
        "thresholds, least area and the diameter of each image": np.s_[:, :1],
        "thresholds, least area and normalisation": np.s_[:, :, :1],
        "everything": np.s_[:],
    }
    taken = {"defaults": (0,) * 5, "thresholds one after the other (before)": one_after_the_other(scores)}
    return taken | {name: nearest_to_default(scores[part]) for name, part in parts.items()}


def show_worth(name: str, scores: np.ndarray, learn: Sequence[int], types: Sequence[str], grid: Mapping) -> None:
    """Print what each way to search takes on the images to learn from, and what that scores on the others.

    Parameters
    ----------
    scores : (images, normalise, diameter_of, flow, cellprob, least area) float64
    """
    judge = np.setdiff1d(np.arange(len(scores)), learn)
    own = {place: scores[(judge, *place)] for place in set(choices(scores[learn]).values())}
    base = own[(0,) * 5]
    print(
        f"\n| {name}, {len(learn)} -> {len(judge)} images | taken | MAP IoU | gain ± standard error |\n|---|---|---:|---|"
    )
    for what, place in choices(scores[learn]).items():
        print(row(what, told(place, grid), own[place], base))
    if len(set(types)) > 1:
        types = np.array(types)
        found = np.zeros(len(judge))
        for cell_type in sorted(set(types)):
            place = nearest_to_default(scores[[k for k in learn if types[k] == cell_type]][:, :1, :1])
            of = types[judge] == cell_type
            found[of] = scores[(judge[of], *place)]
        print(row("what is searched, by cell type", "", found, base))
    best = np.unravel_index(scores[judge].mean(axis=0).argmax(), scores.shape[1:])
    print(row("the best there is for the judges", told(best, grid), scores[(judge, *best)], base))


def row(what: str, taken: str, found: np.ndarray, base: np.ndarray) -> str:
    gain = found - base
    error = gain.std(ddof=1) / np.sqrt(len(gain))
    return f"| {what} | {taken} | {found.mean():.3f} | {gain.mean():+.3f} ± {error:.3f} |"


def told(place: Sequence[int], grid: Mapping[str, Sequence]) -> str:
    values = [f"{values[k]}" for values, k in zip(grid.values(), place, strict=True) if k]
    return ", ".join(values) or "-"


def show_run(network, run: Path, folder: Path) -> None:
    """Search on training images of a run, and judge on others."""
    labelled = read_coco(run / "coco/train.json", run)
    config = read_manifest(run)["stages"]["03_finetune_cellpose"]["config"]
    some = labelled.sample(LEARN + JUDGE)
    learn = list(range(0, len(some), 3))
    truths = some.instances
    of_learn = [truths[k] for k in learn]
    settings = {**DEFAULTS, "diameter_px": diameter_of(of_learn), "channels": config["channels"]}
    grid = grid_of(settings, list(GRID), of_learn, GRID)
    cache = MapCache(network, folder, 10.0)
    scores = np.stack([
        [score_image(network, *some[k], {**settings, "normalise": pair}, grid, cache) for pair in NORMALISE]
        for k in range(len(some))
    ])  # fmt: skip
    show_worth(run.name, scores, learn, [r.cell_type for r in some.records], {"normalise": NORMALISE, **grid})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", nargs="*", type=Path, default=[Path("runs/two_lines"), Path("runs/dkfz")])
    parser.add_argument("--cache", type=Path, default=Path("runs/bench_search"), help="folder that keeps maps")
    parser.add_argument("--weights", default="starter")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    get_backend("cellpose_unet")
    network = load_network(find_weights(given.weights))[0]
    show_speed(network, given.repeats)
    for run in given.runs:
        try:
            show_run(network, run, given.cache)
        except (UserError, OSError) as error:
            print(f"\n{run} is skipped: {str(error).splitlines()[0]}")


if __name__ == "__main__":
    main()
