"""What each step of Mask R-CNN is worth: every one alone against the base, paired by seed and by image.

    python benchmarks/ablate_detector.py --set drawn --seeds 3 --steps 150
    python benchmarks/ablate_detector.py --set sartorius --images 12 --tested 12 --seeds 3 --minutes 60

For each seed N labelled images are drawn, the base is trained on them, and what it says of training and held-out images is kept
once: each way of reading it (`READINGS`: score of masks, covered cells, mask NMS, which thresholds are searched) is then a row
for milliseconds. Each change of the training (`TRAININGS`) is a training of its own, read as the base is. Thresholds are searched
on at most six of the training images; held-out images choose nothing, the last weights are taken. The score is MAP IoU (kaggle).

Each finished training is one or more rows of `--out`; what is there is not made again, so that the command can be killed and
repeated. `--table` prints the table of what is there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jobs
import numpy as np
import real_sets
from ablate_training import reach

from cellkit.cells.dataset import CellDataset, evenly_spaced
from cellkit.cells.instances import Instances
from cellkit.config.reading import load_config
from cellkit.fetch.find import find_weights
from cellkit.files import sha256_file
from cellkit.log import LOG, show_log
from cellkit.models import maskrcnn_torchvision as maskrcnn
from cellkit.models.maskrcnn_detect import raw_detections
from cellkit.models.shared.detection_search import GRID, SEARCHED, loosest, readings, search_readings
from cellkit.models.shared.detections import Reading, read_detections
from cellkit.models.shared.detector_settings import BEFORE, DEFAULTS
from cellkit.models.shared.detector_start import opened
from cellkit.models.shared.diameter import diameter_of
from cellkit.models.shared.fine_tuning import images_to_search, map_iou
from cellkit.models.shared.tiles import Boxes

ROOT = Path(__file__).resolve().parents[1]
OF_SET = {
    "sartorius": {"convert.split_by": "image"}
}  # set -> what its configuration is told; the images there name no plate
SETS = {"drawn": "demo", "two_lines": "two_lines", "dkfz": "dkfz", "sartorius": "sartorius"}  # set -> its configuration
BASE = "base"
OLD = BEFORE | {"score_threshold": 0.5}
SCORE = ("score_threshold",)
READINGS: dict[str, tuple[Sequence[str], dict[str, Any]]] = {  # name -> what is searched, and what is set
    BASE: (SEARCHED, {}),
    "as it was: score and box NMS, nothing else": (("score_threshold", "nms_threshold"), OLD),
    "defaults, nothing searched": ((), {}),
    "score threshold searched alone": (SCORE, {}),
    "no mask threshold searched": ([key for key in SEARCHED if key != "mask_threshold"], {}),
    "no least area searched": ([key for key in SEARCHED if key != "min_area_px"], {}),
    "no score of masks": (SEARCHED, {"mask_score": False}),
    "covered cells trimmed": (SEARCHED, {"covered_share": 1.0}),
    "mask NMS 0.1": (SEARCHED, {"mask_nms_threshold": 0.1}),
    "mask NMS 0.1, covered cells trimmed": (SEARCHED, {"mask_nms_threshold": 0.1, "covered_share": 1.0}),
    "everything searched": (tuple(GRID), {}),
}
TRAININGS: dict[str, dict[str, Any]] = {  # "enlarged" is times the usual scale, "average" a share of the steps
    BASE: {},
    "masks train on jittered true boxes": {"box_jitter": 0.1},
    "weights averaged": {"average": 0.15},
    "masks end at their boxes": {"mask_box_margin": 0.0},
    "masks reach 0.2 beyond their boxes": {"mask_box_margin": 0.2},
    "cells enlarged 1.5 times": {"enlarged": 1.5},
    "cells enlarged 2 times": {"enlarged": 2.0},
    "anchors from the data": {"anchors": "data"},
    "mean of 2 flips": {"flips": 2},
    "mean of 4 flips": {"flips": 4},
    "overlapping cells train whole": {"keep_overlaps": True},
}
KEY = ("set", "base", "images", "steps", "tested", "seed", "training", "reading")
COLUMNS = (*KEY, "train_s", "search_s", "score", "found", "scores")
Raws = list[tuple[Boxes, Instances]]


def images_of(name: str, data: Path, folder: Path, tested: int) -> tuple[CellDataset, CellDataset, Any]:
    """Return the images to draw training images from, those that are scored, and the configuration of a set."""
    from cellkit.sources.drawn.files import write_fields
    from cellkit.sources.ingest import convert_images

    told = {} if name == "drawn" else {"data": str(data), **OF_SET.get(name, {})}
    config = load_config(ROOT / "configs" / f"{SETS[name]}.yaml", told)
    root = data / (config.convert.path or "")
    if name == "drawn":
        root = folder / "microscope"
        write_fields(root, lines=config.convert.classes, seed=config.convert.seed, **config.convert.drawn.model_dump())
    images = convert_images(config.convert, root, folder / name).images.with_truth()
    images = images.subset([not record.flags for record in images.records])
    images = images.subset([len(cells) > 1 for cells in images.instances])
    pool, test = images.select("train"), images.select("test")
    return pool, test.subset(evenly_spaced(len(test), min(tested, len(test)))), config


def settings_of(changes: dict[str, Any], section: Any, base: Path, seed: int, steps: int, train: CellDataset) -> Any:
    """Return the settings of a training: those of the set's configuration, and what is changed."""
    fixed = {
        "start": str(base),
        "seed": seed,
        "steps": steps,
        "eval_every": steps,
        "score_threshold": 0.5,
        "nms_threshold": 0.5,
    }
    given = {key: value for key, value in section.model_dump().items() if key in maskrcnn.TrainSettings.model_fields}
    own = {key: value for key, value in changes.items() if key in maskrcnn.TrainSettings.model_fields}
    if "average" in changes:
        own["average_steps"] = max(2, round(changes["average"] * steps))
    if "enlarged" in changes:
        own["diameter_px"] = (given["diameter_px"] or diameter_of(train.instances)) / changes["enlarged"]
    unsearched = {"mask_threshold": 0.5, "min_area_px": given["min_area_px"] or DEFAULTS["min_area_px"]}
    return maskrcnn.TrainSettings(**(given | fixed | unsearched | own))


def raws_of(
    checkpoint: Path, pairs: Sequence[tuple[np.ndarray, Instances]], least: float
) -> tuple[Raws, dict[str, Any]]:
    """Return what a detector says of each image down to a score, and what it is read with."""
    from cellkit.models.maskrcnn_network import build

    loosely = maskrcnn.Settings(score_threshold=least, nms_threshold=max(GRID["nms_threshold"]))
    model, used = opened(checkpoint, loosely, maskrcnn.NAME, build)
    return [(raw_detections(model, image, used)[0], truth) for image, truth in pairs], used


def scores_of(searched: Raws, held_out: Raws, used: dict[str, Any], reading: str) -> dict[str, Any]:
    """Search what a reading wants searched, and return the score of each held-out image."""
    keys, fixed = READINGS[reading]
    settings = {**used, **{key: DEFAULTS[key] for key in ("score_threshold", "nms_threshold")}, **fixed}
    grid = readings(settings, keys, [truth for _, truth in searched])
    begun = time.monotonic()
    found = search_readings(searched, grid, keys, "MAP IoU", "").settings if keys else {}
    seconds = time.monotonic() - begun
    read = Reading.of(settings | found)
    each = [map_iou([(truth, read_detections(raw, truth.shape, read)[0])]) for raw, truth in held_out]
    return {
        "search_s": round(seconds, 1),
        "score": round(float(np.mean(each)), 5),
        "found": json.dumps(found, sort_keys=True),
        "scores": " ".join(f"{score:.4f}" for score in each),
    }  # fmt: skip


def one_run(
    job: tuple[int, str], pool: CellDataset, test: CellDataset, base: Path, given: argparse.Namespace, section: Any
) -> list[dict[str, Any]]:
    """Draw the training images of a seed, train, and read; return the rows."""
    seed, training = job
    drawn = np.sort(np.random.default_rng([seed, 1]).permutation(len(pool))[: given.images])
    train = pool.subset(drawn)
    config = settings_of(TRAININGS[training], section, base, seed, given.steps, train)
    least = loosest(GRID)
    with tempfile.TemporaryDirectory() as folder:
        begun = time.monotonic()
        checkpoint = maskrcnn.train(train, train.subset([]), config, Path(folder))
        seconds = time.monotonic() - begun
        searched, used = raws_of(checkpoint, images_to_search(train)[0], least)
        held_out, _ = raws_of(checkpoint, [test[k] for k in range(len(test))], least)
    names = READINGS if training == BASE else (BASE,)
    return [
        {"seed": seed, "training": training, "reading": name, "train_s": round(seconds, 1)}
        | scores_of(searched, held_out, used, name)
        for name in names
    ]


# ---- the table -----------------------------------------------------------------------------------------------------
def paired(rows: Sequence[dict[str, str]], training: str, reading: str) -> list[np.ndarray]:
    """Return, for each seed, the differences to the base in the images that both scored."""
    of = {(row["seed"], row["training"], row["reading"]): np.array(row["scores"].split(), float) for row in rows}
    seeds = sorted({row["seed"] for row in rows})
    both = [(of.get((seed, training, reading)), of.get((seed, BASE, BASE))) for seed in seeds]
    return [one - other for one, other in both if one is not None and other is not None]


def table(rows: Sequence[dict[str, str]]) -> Iterator[str]:
    """Yield the lines of a Markdown table: scores, and paired differences to the base with their intervals.

    Those over images are of the images of one training each, so they tell images apart, not trainings; that over seeds needs two.
    """
    yield "| training | reading | seeds | train s | search s | MAP IoU | - base | 95 % over seeds | 95 % over images, each seed |"
    yield "|---|---|---:|---:|---:|---:|---:|---|---|"
    for training, reading in dict.fromkeys((row["training"], row["reading"]) for row in rows):
        own = [row for row in rows if (row["training"], row["reading"]) == (training, reading)]
        train_s, search_s, score = (
            np.mean([float(row[key]) for row in own]) for key in ("train_s", "search_s", "score")
        )
        each, told = paired(rows, training, reading), ("", "", "")
        if (training, reading) != (BASE, BASE) and each:
            gains = [float(one.mean()) for one in each]
            by_image = ", ".join(interval(one.tolist()) for one in each if len(one) > 1)
            told = (f"{np.mean(gains):+.4f}", interval(gains) if len(gains) > 1 else "", by_image)
        numbers = f"{len(own)} | {train_s:.0f} | {search_s:.0f} | {score:.4f}"
        yield f"| {training} | {reading} | {numbers} | {' | '.join(told)} |"


def interval(gains: list[float]) -> str:
    """Return a mean's 95 % interval, by Student's t."""
    half, mean = reach(gains), float(np.mean(gains))
    return f"{mean - half:+.4f} to {mean + half:+.4f}"


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=tuple(SETS), required=True)
    parser.add_argument("--images", type=int, default=8, help="training images of a run (default 8)")
    parser.add_argument("--tested", type=int, default=12, help="most held-out images that are scored (default 12)")
    parser.add_argument("--seeds", type=int, default=3, help="draws of training images; also seeds of the training")
    parser.add_argument("--steps", type=int, default=150, help="steps of a training (default 150)")
    parser.add_argument("--base", default="starter_light", help="weights of the encoder: a name or a path")
    parser.add_argument("--trainings", nargs="+", choices=tuple(TRAININGS), help="some of them; the base is always run")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "ablate_detector.csv")
    parser.add_argument("--table", action="store_true", help="print the table of what is there, and run nothing")
    real_sets.add_arguments(parser)
    jobs.add_arguments(parser)
    given = parser.parse_args()
    show_log()
    jobs.prepare(given.device)
    base = Path(given.base) if Path(given.base).is_file() else find_weights(given.base)
    known = {"set": given.set, "base": sha256_file(base)[:12]}
    known |= {key: getattr(given, key) for key in ("images", "steps", "tested")}

    def mine() -> list[dict[str, str]]:
        return [row for row in jobs.rows_of(given.out) if all(row[key] == str(value) for key, value in known.items())]

    if not given.table:
        until = jobs.until_of(given.stop_after)
        pool, test, config = images_of(given.set, Path(given.data), given.out.with_suffix(""), given.tested)
        LOG.info(f"{given.set}: {len(pool)} images to draw {given.images} from, {len(test)} scored")
        names = [name for name in TRAININGS if name == BASE or not given.trainings or name in given.trainings]
        done = {(row["seed"], row["training"]) for row in mine()}
        todo = [(seed, name) for seed in range(given.seeds) for name in names if (str(seed), name) not in done]
        one = partial(one_run, pool=pool, test=test, base=base, given=given, section=config.maskrcnn)
        for _, rows in jobs.run_all(one, todo, given.workers, until):
            jobs.add_rows(given.out, COLUMNS, [known | row for row in rows])
    print("\n".join(["", *table(mine())]))


if __name__ == "__main__":
    main()
