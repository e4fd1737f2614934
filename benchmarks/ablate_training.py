"""What each change of the training recipe is worth: every one alone against the base recipe, at an equal budget, paired by seed.

    python benchmarks/ablate_training.py --set two_lines --images 4 --seeds 5 --cpu-minutes 3
    python benchmarks/ablate_training.py --set dkfz --packed packed --steps 160 --equal pixels --workers 16 --minutes 9

The base recipe is what cellkit does unless told otherwise; `not trained` are the start weights, read as all others are.

For each seed N labelled images are drawn from the training images of the set. Every recipe starts from the same weights, trains
on these N with as much CPU time (or as many pixels) as the base recipe has, searches its thresholds on them as any training
does, and is scored on held-out images: MAP IoU (kaggle). Held-out images choose nothing, the last weights are taken. `source` is
the score on drawn fields of the kinds that the starter weights were made with: what a recipe forgets. Each finished run is a row
of `--out`; a row that is there is not made again, so that the command can be killed and repeated.

`--cpu-minutes` are of the base recipe's steps. How many steps that is depends on the machine, also where pixels are what is
equal: the time of a step is measured once for each recipe and kept beside the table. With `--steps` and `--equal pixels` nothing
depends on it. `CPU s` is what the training took, targets and steps; the search of thresholds, which is alike for all recipes, is
not in it, nor is the scoring.
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

from cellkit.cells.dataset import CellDataset, evenly_spaced
from cellkit.cells.drawn.pictures import KINDS, draw
from cellkit.cells.instances import Instances
from cellkit.config.reading import load_config
from cellkit.fetch.find import find_weights
from cellkit.files import read_json, sha256_file, write_json
from cellkit.log import LOG, show_log
from cellkit.models import cellpose_unet as unet
from cellkit.models.shared.diameter import diameter_of
from cellkit.models.shared.fine_tuning import map_iou
from cellkit.models.unet_batches import loss_of

ROOT = Path(__file__).resolve().parents[1]
SETS = ("two_lines", "dkfz", "dsb2018")
BASE, UNTRAINED = "base", "not trained"
RECIPES: dict[str, dict[str, Any]] = {  # a share of the steps is written as a float where steps are wanted
    BASE: {},
    UNTRAINED: {},
    "batch statistics": {"fixed_norms": False},
    "three times the rate": {"learning_rate": 6e-4},
    "not averaged": {"average_steps": 0},
    "all three": {"fixed_norms": False, "learning_rate": 6e-4, "average_steps": 0},
    "crops of 224 px": {"crop_px": 224, "batch_size": 4},
    "short warm-up": {"warmup_share": 0.05},
    "held rate": {"hold_share": 0.6},
    "strong intensities": {"intensities": "strong"},
    "decoder only": {"frozen_levels": 4},
    "last two levels": {"frozen_levels": 6},
    "replay": {"replay_share": 0.15},
    "no rotation": {"rotate": False},
    "outside unknown": {"outside_counts": False},
    "averaged over 15 %": {"average_steps": 0.15},
    "one diameter for all": {"diameter_of": "batch"},
    "crops dealt over images": {"balance_types": False},
}
CHANGED = sorted(set().union(*RECIPES.values()))  # all that a recipe changes: elsewhere as cellkit has it unless set
KEY = ("set", "base", "images", "seed", "equal", "minutes", "tested", "most", "recipe")
COLUMNS = (*KEY, "steps", "batch_size", "crop_px", "cpu_s", "score", "source", "scores", "changes")
Pairs = list[tuple[np.ndarray, Instances]]


# ---- images --------------------------------------------------------------------------------------------------------
def images_of(
    name: str, data: Path, folder: Path, most: int | None = None, base: str = "starter"
) -> tuple[CellDataset, Any]:
    """Return the labelled images of a set, converted into `folder` as notebook 01 does, and its configuration."""
    from cellkit.sources.ingest import convert_images

    more: dict[str, Any] = {"convert.max_images": most}
    if name == "dsb2018":
        more["convert.modalities"] = ["fluor_small", "fluor_large"]
    config = load_config(ROOT / "configs" / f"{name}.yaml", {"data": str(data), **more})
    images = convert_images(config.convert, data / config.convert.path, folder / name).images.with_truth()
    if name == "dsb2018":  # the starter weights have learned from the others
        is_unseen, *_ = real_sets.unseen_by(base, data)
        images = images.subset([is_unseen(real_sets.original_id(record.image_id)) for record in images.records])
    return images.subset([not record.flags for record in images.records]), config


def parted(images: CellDataset, tested: int) -> tuple[CellDataset, CellDataset]:
    """Return the images to draw training images from, and at most `tested` others that are scored.

    The split of the set is kept where it has test images; else, and for kept-out images of DSB2018, every second is scored.
    """
    named = images.by_split()
    if {"train", "test"} <= set(named) and len(named["test"]) >= min(tested, 8):
        pool, test = named["train"], named["test"]
    else:
        pool, test = (images.subset(np.arange(len(images)) % 2 == k) for k in (0, 1))
    pool = pool.subset([len(cells) > 1 for cells in pool.instances])
    return pool, test.subset(evenly_spaced(len(test), min(tested, len(test))))


# ---- one run -------------------------------------------------------------------------------------------------------
def settings_of(recipe: dict[str, Any], section: Any, base: Path, seed: int, steps: int) -> unet.TrainSettings:
    """Return the settings of a recipe: what it changes; what others change as cellkit has it; else the set's configuration."""
    changed = {
        key: max(2, round(value * steps)) if key == "average_steps" and isinstance(value, float) else value
        for key, value in recipe.items()
    }
    fixed = {"base": str(base), "seed": seed, "steps": steps, "eval_every": steps}
    fixed |= {key: getattr(unet.TrainSettings(), key) for key in CHANGED}
    given = {key: value for key, value in section.model_dump().items() if key in unet.TrainSettings.model_fields}
    return unet.TrainSettings(**(given | fixed | changed))


def unsearched_keys(config: unet.TrainSettings) -> list[str]:
    """Return the settings that a training would search."""
    return [key for key in unet.SEARCHED if getattr(config, key) is None]


def pixels_of(config: unet.TrainSettings) -> int:
    """Return the pixels of a step."""
    return config.batch_size * config.crop_px**2


def step_seconds(
    names: Sequence[str], train: CellDataset, section: Any, base: Path, kept: Path, repeats: int
) -> dict[str, float]:
    """Return the CPU seconds of a training step of each recipe, measured once and kept in a file."""
    times = read_json(kept) if kept.is_file() else {}
    stamps = {}
    for name in names:
        recipe = RECIPES[name]
        stamps[name] = stamp = f"{base.stem} {json.dumps(recipe, sort_keys=True)}"
        if stamp not in times:
            config = settings_of(recipe, section, base, 0, 100)
            each = [cpu for _ in range(2) for cpu in steps_timed(train, config, 1 + repeats)[1:]]
            times[stamp] = float(np.median(each))
            write_json(kept, times, indent=1)
    return {name: times[stamp] for name, stamp in stamps.items()}


def steps_timed(train: CellDataset, config: unet.TrainSettings, steps: int) -> list[float]:
    """Take training steps; return the CPU seconds of each, those of the thread that draws batches among them."""
    import torch

    from cellkit.models.training import Plan, fit

    settings = {
        **unet.DEFAULTS,
        "diameter_px": config.diameter_px or diameter_of(train.instances),
        "channels": config.channels,
    }
    loss_at = loss_of(train, config, settings)
    times = [time.process_time()]

    def timed(step: int) -> torch.Tensor:
        times.append(time.process_time())
        return loss_at(step)

    plan = Plan(steps, steps, average_steps=config.average_steps)
    with tempfile.TemporaryDirectory() as folder:
        fit(loss_at.network, timed, lambda: 0.0, plan, Path(folder), "", choose=False)
    return np.diff(times)[1:].tolist()


def scores_of(checkpoint: Path, pairs: Pairs, own_diameter: bool = False) -> list[float]:
    """Return MAP IoU (kaggle) of each image as the checkpoint is meant to be read, or each at the diameter of its truth."""
    read = unet.load(checkpoint)
    scores = []
    for image, truth in pairs:
        if own_diameter:
            read = unet.load(
                checkpoint, unet.Settings(diameter_px=diameter_of([truth]), channels="both", min_area_px=15)
            )
        (found,) = read([image])
        scores.append(map_iou([(truth, found)]))
    return scores


# ---- the table -----------------------------------------------------------------------------------------------------
def differences(rows: Sequence[dict[str, str]], recipe: str, column: str) -> list[float]:
    """Return recipe minus base, one of each seed that has both."""
    of = {name: {row["seed"]: float(row[column]) for row in rows if row["recipe"] == name} for name in (BASE, recipe)}
    return [of[recipe][seed] - of[BASE][seed] for seed in sorted(of[BASE]) if seed in of[recipe]]


def reach(values: Sequence[float]) -> float:
    """Return half the width of the 95 % interval of a mean (Student's t); nan of less than two values."""
    from scipy.stats import t

    if len(values) < 2:
        return float("nan")
    return float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))


def table(rows: Sequence[dict[str, str]]) -> Iterator[str]:
    """Yield the lines of a markdown table: each recipe, its scores, and its paired difference to the base."""
    yield "| recipe | seeds | steps | CPU s | score | - base | 95 % interval | source | - base |"
    yield "|---|---:|---:|---:|---:|---:|---|---:|---:|"
    for name in dict.fromkeys(row["recipe"] for row in rows):
        own = [row for row in rows if row["recipe"] == name]
        mean = {
            column: np.mean([float(row[column]) for row in own]) for column in ("steps", "cpu_s", "score", "source")
        }
        gain, kept = differences(rows, name, "score"), differences(rows, name, "source")
        told = ["", "", ""]
        if name != BASE and gain:
            low, high = (np.mean(gain) + sign * reach(gain) for sign in (-1, 1))
            told = [f"{np.mean(gain):+.4f}", f"{low:+.4f} to {high:+.4f}", f"{np.mean(kept):+.4f}"]
        yield (
            f"| {name} | {len(own)} | {mean['steps']:.0f} | {mean['cpu_s']:.0f} | {mean['score']:.4f} | {told[0]} | {told[1]} "
            f"| {mean['source']:.4f} | {told[2]} |"
        )


def arguments() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=tuple(real_sets.SETS), required=True)
    parser.add_argument("--images", type=int, default=4, help="training images of a run")
    parser.add_argument("--seeds", type=int, default=3, help="draws of training images; also seeds of the training")
    parser.add_argument(
        "--cpu-minutes", dest="minutes", type=float, default=2.0, help="CPU time of the steps of a run (default 2)"
    )
    parser.add_argument("--steps", type=int, help="steps of the base recipe, instead of --cpu-minutes")
    parser.add_argument(
        "--equal", choices=("cpu", "pixels"), default="cpu", help="what recipes have as much of as the base"
    )
    parser.add_argument("--base", default="starter", help="weights to start from: a name or a path")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "ablation.csv")
    parser.add_argument("--tested", type=int, default=16, help="most held-out images that are scored")
    parser.add_argument("--most", type=int, help="most images of the set per cell type; all by default")
    parser.add_argument("--recipes", nargs="+", choices=tuple(RECIPES), help="some of them; the base is always run")
    parser.add_argument("--table", action="store_true", help="print the table of what is there, and run nothing")
    real_sets.add_arguments(parser)
    jobs.add_arguments(parser)
    return parser.parse_args()


def main() -> None:
    """Run what is missing, seed by seed, and print the table."""
    show_log()
    given = arguments()
    jobs.prepare(given.device)
    until = jobs.until_of(given.stop_after)
    work = given.out.with_suffix("")
    base = Path(given.base) if Path(given.base).is_file() else find_weights(given.base)
    known = {"set": given.set, "base": sha256_file(base)[:12], "images": given.images, "equal": given.equal}
    known |= {"minutes": f"{given.steps} steps" if given.steps else given.minutes}
    known |= {"tested": given.tested, "most": given.most or ""}

    def mine() -> list[dict[str, str]]:
        return [row for row in jobs.rows_of(given.out) if all(row[key] == str(value) for key, value in known.items())]

    if not given.table:
        pool, test, config = parts_of(given, work)
        LOG.info(f"{given.set}: {len(pool)} images to draw {given.images} from, {len(test)} scored")
        names = [name for name in RECIPES if name == BASE or not given.recipes or name in given.recipes]
        times = dict.fromkeys(names, 1.0)
        if given.equal == "cpu" or not given.steps:
            some = pool.subset([0, 1])
            times = step_seconds(names, some, config.finetune, base, work / "step_seconds.json", repeats=2)
        if given.steps:
            given.minutes = given.steps * times[BASE] / 60
        done = {(row["seed"], row["recipe"]) for row in mine()}
        todo = [(seed, name) for seed in range(given.seeds) for name in names if (str(seed), name) not in done]
        one = partial(one_run, pool=pool, test=test, base=base, given=given, times=times, work=work)
        for _, row in jobs.run_all(one, todo, given.workers, until):
            jobs.add_rows(given.out, COLUMNS, [known | row])
    print("\n".join(["", *table(mine())]))


def parts_of(given: argparse.Namespace, work: Path) -> tuple[CellDataset, CellDataset, Any]:
    """Return the images to draw from, those that are scored, and the configuration of the set."""
    if given.packed or given.set not in SETS:
        sizes = (given.most or 10**6, given.tested)
        places = (given.set, Path(given.data), work, *sizes, given.packed, given.base)
        pool, test, config, _ = real_sets.images_of(*places)
        return pool.subset([len(cells) > 1 for cells in pool.instances]), test, config
    images, config = images_of(given.set, Path(given.data), work, given.most, given.base)
    return *parted(images, given.tested), config


def one_run(
    job: tuple[int, str],
    pool: CellDataset,
    test: CellDataset,
    base: Path,
    given: argparse.Namespace,
    times: dict[str, float],
    work: Path,
) -> dict[str, Any]:
    """Draw the training images of a seed, train one recipe on them and score it; return its row."""
    seed, name = job
    drawn = np.sort(np.random.default_rng([seed, 1]).permutation(len(pool))[: given.images])
    section = real_sets.config_of(given.set, Path(given.data)).finetune
    source = [draw(kind, index, 7919) for kind in KINDS for index in range(2)]
    return run(name, pool.subset(drawn), test, source, section, base, seed, given, times, work)


def run(
    name: str,
    train: CellDataset,
    test: CellDataset,
    source: Pairs,
    section: Any,
    base: Path,
    seed: int,
    given: argparse.Namespace,
    times: dict[str, float],
    work: Path,
) -> dict[str, Any]:
    """Train one recipe on one draw of images and score it."""
    steps = max(4, round(60 * given.minutes / times[name]))  # where nothing is trained, those that would be
    if given.equal == "pixels":
        sizes = [pixels_of(settings_of(RECIPES[one], section, base, seed, 100)) for one in (BASE, name)]
        steps = max(4, round(60 * given.minutes / times[BASE] * sizes[0] / sizes[1]))
    config = settings_of(RECIPES[name], section, base, seed, steps)
    unsearched = config.model_copy(update={key: unet.DEFAULTS[key] for key in unsearched_keys(config)})
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        tuned = base if name == UNTRAINED else unet.train(train, train.subset([]), unsearched, Path(folder))
        spent = time.process_time() - began
        checkpoint = unet.calibrate(train, config.model_copy(update={"base": str(tuned)}), Path(folder) / "read")
        scores = scores_of(checkpoint, [test[k] for k in range(len(test))])
        kept = scores_of(checkpoint, source, own_diameter=True)
    return {
        "seed": seed,
        "recipe": name,
        "steps": steps,
        "batch_size": config.batch_size,
        "crop_px": config.crop_px,
        "cpu_s": round(spent, 1),
        "score": round(float(np.mean(scores)), 5),
        "source": round(float(np.mean(kept)), 5),
        "scores": " ".join(f"{score:.4f}" for score in scores),
        "changes": json.dumps(RECIPES[name], sort_keys=True),
    }


if __name__ == "__main__":
    main()
