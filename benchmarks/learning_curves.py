"""What adaptation is worth: scores by the number of training images, of the base, Cellpose's train_seg, and ours.

    python benchmarks/real_sets.py --data FOLDER --out packed                       # here, once
    python benchmarks/learning_curves.py --packed packed --workers 16 --device cuda --minutes 9 --peer-share 0.4

In each draw, images are taken from those to train on, so that fewer are always a part of more; every model gets the same
ones, and all are scored on the same test images, which nothing has seen. Models:

- **base**: the start weights, read as `calibrate` says: diameter and thresholds from the training images, as for all others.
- **train_seg**: Cellpose 3.1.1.3, the same network and start weights, its published recipe (AdamW, 5e-3, 224 px, at least 8
  images an epoch), with the steps that the CPU seconds of all our steps buy, those of the short runs that the gate judges by
  too (`--peer-share` steps for one of ours; measured if not given). **train_seg, published** (`--peers published`) takes its
  300 epochs, whatever they cost.
- **before the gate**: `cellkit.evaluate.adaptation.adapt`, the tuned weights at the step from base to tuned that scored best on
  images held back; **whole step**: those of the whole training. **after the gate**: what `adapt` keeps, base or tuned.

Scores: AP at IoU 0.5, TP / (TP + FP + FN), and MAP IoU (kaggle), each the mean of images. Draw by draw, all numbers of images;
so whatever the time allows is a paired comparison. `--table` trains nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cellpose3
import jobs
import numpy as np
import real_sets
from ablate_training import reach, steps_timed

from cellkit.config.reading import set_strings
from cellkit.files import atomic_path

BASE, PEER, PUBLISHED = "base", "train_seg", "train_seg, published"
WHOLE, BEFORE, AFTER = "ours, whole step", "ours, before the gate", "ours, after the gate"
MODELS = (BASE, PEER, PUBLISHED, WHOLE, BEFORE, AFTER)
PAIRS = ((AFTER, BASE), (AFTER, PEER), (BEFORE, PEER), (BEFORE, WHOLE), (AFTER, PUBLISHED))
METRICS = {"ap50": "AP at IoU 0.5", "map_iou": "MAP IoU (kaggle)"}
KEY = ("set", "images", "draw", "settings", "model")
COLUMNS = (
    *KEY, "cells", "ap50", "map_iou", "steps", "step_from_base", "kept", "gain", "low", "cpu_s", "ap50_of_images",
    "map_iou_of_images", "device",
)  # fmt: skip
PEER_RECIPE = {"learning_rate": 5e-3, "weight_decay": 1e-4, "batch_size": 8, "bsize": 224, "min_train_masks": 1}
BUDGET = "CPU time of all steps of ours"  # of train_seg
PUBLISHED_EPOCHS, IMAGES_AN_EPOCH = 300, 8
ELSEWHERE = {  # AP at IoU 0.5 by the number of training images, on other images: shared/docs name the files they come from
    "Fong et al. 2024, immune cells, cyto, 448 px": {0: 0.516, 1: 0.595, 2: 0.634, 3: 0.653, 5: 0.675, 7: 0.701},
    "CellSeg1 (arXiv 2412.01410), DSB2018, cyto2": {1: 0.603, 5: 0.864, 10: 0.873},
    "CellSeg1 (arXiv 2412.01410), DSB2018, SAM-H with LoRA": {1: 0.811, 5: 0.858, 10: 0.873},
}


class Job(NamedTuple):
    """One training: a set, a number of images, a draw, and whose: "ours", or `PEER`, or `PUBLISHED`."""

    set: str
    images: int
    draw: int
    whose: str


# ---- one training --------------------------------------------------------------------------------------------------
def settings_of(config: Any, given: argparse.Namespace, draw: int) -> Any:
    """Return the section finetune of a set, as it is but for the seed and what the flags say."""
    from cellkit.fetch.find import find_weights

    base = given.base if given.base == "scratch" or Path(given.base).is_file() else find_weights(given.base)
    changed = {"base": str(base), "seed": draw} | ({"steps": given.steps} if given.steps else {})
    return config.finetune.model_copy(update=changed)


def drawn(train: Any, images: int, draw: int) -> Any:
    """Return so many training images; fewer of the same draw are a part of them."""
    return train.subset(np.sort(real_sets.order_of(len(train), draw)[:images]))


def work(job: Job, given: argparse.Namespace, shares: dict[str, float], stamps: dict[str, str]) -> list[dict[str, Any]]:
    """Do one training and score it; return its rows."""
    import torch

    train, test, config, _ = images_of(job.set, given)
    settings, some = settings_of(config, given, job.draw), drawn(train, job.images, job.draw)
    began = time.process_time() + children_s()
    with tempfile.TemporaryDirectory() as folder:
        kept = {"share": shares.get(job.set, 0.0), "flows": Path(given.work) / "flows_of_train_seg"}
        do = ours if job.whose == "ours" else partial(theirs, whose=job.whose, **kept)
        rows = do(some, test, settings, Path(folder))
    known = {"set": job.set, "images": job.images, "draw": job.draw, "settings": stamps[job.set]}
    known |= {"cells": some.cells, "cpu_s": round(time.process_time() + children_s() - began, 1)}
    known["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return [known | row for row in rows]


def ours(some: Any, test: Any, settings: Any, folder: Path) -> list[dict[str, Any]]:
    """Adapt as notebook 03 does; return the rows of the base, the whole step, and before and after the gate."""
    from cellkit.evaluate.adaptation import adapt
    from cellkit.models import cellpose_unet as unet

    adapted = adapt(unet, some, settings, folder)
    paths = {
        BASE: adapted.base,
        WHOLE: folder / "cellpose_tuned.safetensors",
        BEFORE: adapted.tuned,
        AFTER: adapted.kept,
    }
    decision = adapted.decision
    told = {"step_from_base": adapted.step, "kept": decision["verdict"], "steps": settings.steps}
    told |= {name: decision.get(name, "") for name in ("gain", "low")}
    scores: dict[Path, dict[str, Any]] = {}
    for path in paths.values():
        if path not in scores:
            scores[path] = scores_of(path, test)
    return [{"model": model, **told, **scores[path]} for model, path in paths.items()]


def theirs(
    some: Any, test: Any, settings: Any, folder: Path, whose: str, share: float, flows: Path | None = None
) -> list[dict[str, Any]]:
    """Train with `train_seg`, and read the result as ours is read: thresholds from the training images; return the row."""
    import torch

    from cellkit.models import cellpose_unet as unet
    from cellkit.models.unet_network import load_start

    start = cellpose3.save_weights(load_start(settings.base, settings.seed, precision="float32"), folder / "start")
    images = [cellpose3.shown(some.image(k), settings.channels) for k in range(len(some))]
    labels = [cells.paint() for cells in some.instances]
    shown = share * steps_in_all(settings, some) * settings.batch_size / PEER_RECIPE["batch_size"]
    epochs = PUBLISHED_EPOCHS if whose == PUBLISHED else epochs_of(shown, len(some))
    options = PEER_RECIPE | {"n_epochs": epochs, "nimg_per_epoch": max(IMAGES_AN_EPOCH, len(some))}
    cellpose3.train(start, images, labels, folder / "theirs", torch.cuda.is_available(), flows, **options)
    read = unet.calibrate(some, settings.model_copy(update={"base": str(folder / "theirs")}), folder / "read")
    steps = epochs * -(-options["nimg_per_epoch"] // options["batch_size"])
    return [{"model": whose, "steps": steps, **scores_of(read, test)}]


def steps_in_all(settings: Any, some: Any) -> int:
    """Return the steps of a whole run of ours: of the run that is handed on, and of the short ones without a part each."""
    from cellkit.evaluate.folds import fold_settings
    from cellkit.models.gate import IN_QUARTERS, QUARTERS, regime_of

    regime = regime_of(some, settings.folds, settings.min_train_masks, settings.seed)
    parts = QUARTERS if regime.name == IN_QUARTERS else len(regime.folds)
    return settings.steps + parts * fold_settings(settings).steps


def epochs_of(steps: float, images: int) -> int:
    """Return the epochs of `train_seg` that show as many crops as so many full batches.

    Examples
    --------
    >>> epochs_of(80, 3), epochs_of(80, 10)
    (80, 64)
    """
    return max(1, round(steps * PEER_RECIPE["batch_size"] / max(IMAGES_AN_EPOCH, images)))


def scores_of(checkpoint: Path, test: Any) -> dict[str, Any]:
    """Return the scores of a checkpoint: means, and those of each image."""
    from cellkit.models import cellpose_unet as unet

    values = real_sets.scores_of(unet, checkpoint, test)
    means = {name: round(float(np.mean(column)), 5) for name, column in values.items()}
    return means | {f"{name}_of_images": " ".join(f"{one:.4f}" for one in column) for name, column in values.items()}


def children_s() -> float:
    """Return the CPU seconds of processes that have ended."""
    import resource

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


# ---- what a step costs ---------------------------------------------------------------------------------------------
def measure(name: str, given: argparse.Namespace) -> float:
    """Return how many steps of `train_seg` the CPU seconds of one of ours buy: float32, one thread, no GPU.

    Steps of two crops are measured, not of eight: time goes with the crops.
    """
    from cellkit.models.unet_network import load_start

    train, _, config, _ = images_of(name, given)
    some = drawn(train, 2, 0)
    settings = settings_of(config, given, 0).model_copy(update={"precision": "float32", "batch_size": 2})
    our_s = float(np.median(steps_timed(some, settings, 5)[1:]))
    images = [cellpose3.shown(some.image(k), settings.channels) for k in range(len(some))]
    labels = [cells.paint() for cells in some.instances]
    with tempfile.TemporaryDirectory() as folder:
        start = cellpose3.save_weights(load_start(settings.base, 0, precision="float32"), Path(folder) / "start")
        seconds = []
        for epochs in (1, 4):
            options = PEER_RECIPE | {"n_epochs": epochs, "nimg_per_epoch": 2, "batch_size": 2}
            _, took = cellpose3.train(start, images, labels, Path(folder) / "theirs", **options)
            seconds.append(float(took["cpu_s"]))
    their_s = (seconds[1] - seconds[0]) / 3
    print(f"{name}: a step takes {our_s:.2f} CPU s, one of train_seg {their_s:.2f}", file=sys.stderr, flush=True)
    return our_s / their_s


def shares_of(given: argparse.Namespace) -> dict[str, float]:
    """Return steps of `train_seg` for one of ours, by set: as given, or measured once and kept beside the table."""
    if given.peer_share:
        return dict.fromkeys(given.sets, given.peer_share)
    kept = given.out.with_suffix(".shares.json")
    shares = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    for name in given.sets:
        if PEER in given.peers and name not in shares and not given.table:
            command = [sys.executable, __file__, *sys.argv[1:], "--measure", name]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            shares[name] = round(float(done.stdout.split()[-1]), 4)
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(shares, indent=1), encoding="utf-8")
    return shares


# ---- jobs and rows -------------------------------------------------------------------------------------------------
def images_of(name: str, given: argparse.Namespace) -> tuple[Any, Any, Any, str]:
    """Return the images to train on, those to score, the configuration, and what the base has seen."""
    sizes = (given.pool, given.tested)
    changed = set_strings(given.override)
    return real_sets.images_of(name, Path(given.data), given.work, *sizes, given.packed, given.base, changed)


def stamp_of(train: Any, test: Any, config: Any, given: argparse.Namespace) -> str:
    """Return a hash of what, beside set, images and draw, decides a score: settings, base, images; the same on every machine.

    Steps of `train_seg` for one of ours stand in the rows alone: with another share, take another table.
    """
    from cellkit.files import sha256_file

    settings = settings_of(config, given, 0)
    told = settings.model_dump(mode="json", exclude={"base", "seed", "workers"})
    base = sha256_file(Path(settings.base)) if Path(settings.base).is_file() else settings.base
    names = [[record.image_id for record in part.records] for part in (train, test)]
    whole = json.dumps([told, base, names, PEER_RECIPE, BUDGET], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()[:10]


def jobs_of(given: argparse.Namespace, most: dict[str, int]) -> Iterator[Job]:
    """Yield all jobs, draw by draw, numbers of images as given; of a set that has too few those that it has room for."""
    for draw in range(given.draws):
        for images in given.images:
            for name in given.sets:
                if images <= most[name]:
                    yield Job(name, images, draw, "ours")
                    for peer in given.peers:
                        yield Job(name, images, draw, peer)


def is_done(job: Job, rows: Sequence[dict[str, str]], stamp: str) -> bool:
    """Tell whether the rows of a job are there."""
    key = (job.set, str(job.images), str(job.draw), stamp, BEFORE if job.whose == "ours" else job.whose)
    return any(tuple(row[name] for name in KEY) == key for row in rows)


# ---- the summary ---------------------------------------------------------------------------------------------------
def summary(rows: Sequence[dict[str, str]], words: dict[str, str]) -> Iterator[str]:
    """Yield the lines of a Markdown page: a table of means, and one of paired differences, for each set and metric."""
    for name in dict.fromkeys(row["set"] for row in rows):
        own = [row for row in rows if row["set"] == name]
        yield from ("", f"## {name}", "", f"{words.get(name, '')}.")
        for metric, title in METRICS.items():
            yield from ("", f"{title}: means of draws", "")
            yield from means(own, metric)
            yield from ("", f"{title}: differences in the same draws, mean [95 % interval over draws]", "")
            yield from differences(own, metric)
        yield from ("", f"The gate kept the tuned model in {kept(own)} (images: kept of draws).")
    yield from (
        "",
        "## Published, on other images: AP at IoU 0.5",
        "",
        "| curve | 0 | 1 | 2 | 3 | 5 | 7 | 10 |",
        "|---|" + "---:|" * 7,
    )
    for name, curve in ELSEWHERE.items():
        yield (
            f"| {name} | " + " | ".join(f"{curve[n]:.3f}" if n in curve else "" for n in (0, 1, 2, 3, 5, 7, 10)) + " |"
        )


def numbers_of(rows: Sequence[dict[str, str]]) -> list[int]:
    """Return the numbers of training images that are there."""
    return sorted({int(row["images"]) for row in rows})


def table_of(rows: Sequence[dict[str, str]], model: str, images: int, metric: str) -> dict[str, float]:
    """Return draw -> score."""
    return {r["draw"]: float(r[metric]) for r in rows if r["model"] == model and int(r["images"]) == images}


def means(rows: Sequence[dict[str, str]], metric: str) -> Iterator[str]:
    """Yield the means of each model by the number of images, over the draws that all models have."""
    numbers = numbers_of(rows)
    models = [model for model in MODELS if any(row["model"] == model for row in rows)]
    shared = {n: set.intersection(*(set(table_of(rows, m, n, metric)) for m in models)) for n in numbers}
    yield "| training images | " + " | ".join(map(str, numbers)) + " |"
    yield "|---|" + "---:|" * len(numbers)
    yield "| draws | " + " | ".join(str(len(shared[n])) for n in numbers) + " |"
    for model in models:
        each = [[v for d, v in table_of(rows, model, n, metric).items() if d in shared[n]] for n in numbers]
        yield f"| {model} | " + " | ".join(f"{np.mean(one):.3f}" if one else "" for one in each) + " |"


def differences(rows: Sequence[dict[str, str]], metric: str) -> Iterator[str]:
    """Yield the paired differences of `PAIRS` by the number of images."""
    numbers = numbers_of(rows)
    yield "| training images | " + " | ".join(map(str, numbers)) + " |"
    yield "|---|" + "---:|" * len(numbers)
    for one, other in PAIRS:
        cells = []
        for n in numbers:
            a, b = (table_of(rows, model, n, metric) for model in (one, other))
            gains = [a[draw] - b[draw] for draw in sorted(a.keys() & b.keys())]
            low, high = (np.mean(gains) + sign * reach(gains) for sign in (-1, 1)) if len(gains) > 1 else (0, 0)
            interval = f" [{low:+.3f}, {high:+.3f}]" if len(gains) > 1 else ""  # one draw tells no spread
            cells.append(f"{np.mean(gains):+.3f}{interval}" if gains else "")
        if any(cells):
            yield f"| {one} - {other} | " + " | ".join(cells) + " |"


def kept(rows: Sequence[dict[str, str]]) -> str:
    """Return how often the gate kept the tuned model, by the number of images."""
    after = [row for row in rows if row["model"] == AFTER]
    each = {n: [row["kept"] == "tuned" for row in after if int(row["images"]) == n] for n in numbers_of(after)}
    return ", ".join(f"{n}: {sum(one)} of {len(one)}" for n, one in each.items())


def plot(rows: Sequence[dict[str, str]], metric: str, to: Path) -> Path:
    """Draw the means of draws by the number of images, a panel for each set; every draw is a dot."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    matplotlib.rcParams["svg.hashsalt"] = "cellkit"  # the same file from the same numbers
    sets, numbers = list(dict.fromkeys(row["set"] for row in rows)), numbers_of(rows)
    figure, panels = plt.subplots(1, len(sets), figsize=(3.6 * len(sets), 3.2), squeeze=False, layout="constrained")
    colours = {BASE: "0.45", PEER: "tab:orange", PUBLISHED: "tab:red", BEFORE: "tab:green", AFTER: "tab:blue"}
    for panel, name in zip(panels[0], sets, strict=True):
        own = [row for row in rows if row["set"] == name]
        for k, (model, colour) in enumerate(colours.items()):
            each = {n: list(table_of(own, model, n, metric).values()) for n in numbers}
            each = {n: values for n, values in each.items() if values}
            for n, values in each.items():
                panel.plot([n * 1.03 ** (k - 2)] * len(values), values, ".", color=colour, alpha=0.35, markersize=4)
            if each:
                panel.plot(list(each), [np.mean(values) for values in each.values()], color=colour, label=model)
        panel.set(title=name, xscale="log", xlabel="training images", xticks=numbers, xticklabels=numbers)
        panel.minorticks_off()
    panels[0, 0].set_ylabel(METRICS[metric])
    panels[0, -1].legend(fontsize=7)
    with atomic_path(to) as temporary:
        figure.savefig(temporary, format=to.suffix[1:], metadata={"Date": None} if to.suffix == ".svg" else None)
    plt.close(figure)
    return to


def arguments() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sets", nargs="+", choices=tuple(real_sets.SETS), default=["two_lines", "dkfz", "dsb2018", "dsb2018_purple"]
    )
    parser.add_argument(
        "--images", nargs="+", type=int, default=[1, 2, 3, 5, 10, 20], help="numbers of training images"
    )
    parser.add_argument("--draws", type=int, default=5, help="draws of training images (default 5)")
    parser.add_argument("--pool", type=int, default=40, help="most images to draw from (default 40)")
    parser.add_argument("--tested", type=int, default=16, help="most images that are scored (default 16)")
    parser.add_argument("--steps", type=int, help="of a training (default that of the configuration of the set)")
    parser.add_argument("--override", nargs="*", default=[], metavar="KEY=VALUE", help="e.g. finetune.batch_size=4")
    parser.add_argument("--base", default="starter", help="weights to start from: a name or a path")
    parser.add_argument(
        "--peers", nargs="*", choices=(PEER, "published"), default=[PEER], help="trainings with train_seg"
    )
    parser.add_argument(
        "--peer-share", type=float, help="steps of train_seg for one of ours (default: measured, a minute a set)"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/learning_curves.csv"))
    parser.add_argument(
        "--work", type=Path, default=Path("runs/real_sets"), help="folder of converted or unpacked images"
    )
    parser.add_argument("--table", action="store_true", help="train nothing, print what is there")
    parser.add_argument("--plot", type=Path, help="also draw the curves of AP at IoU 0.5 into this file: .svg or .png")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    real_sets.add_arguments(parser)
    jobs.add_arguments(parser)
    given = parser.parse_args()
    given.peers = [PUBLISHED if peer == "published" else peer for peer in given.peers]
    return given


def main() -> None:
    """Train what is missing, and write the summary beside the table."""
    given = arguments()
    jobs.prepare("cpu" if given.measure else given.device)
    if given.measure:
        return print(measure(given.measure, given))
    until = jobs.until_of(given.stop_after)
    if given.peers and (why := cellpose3.missing()) and not given.table:
        sys.exit(f"{why}; or leave train_seg out: --peers")
    sets = {name: images_of(name, given) for name in given.sets}  # converted or unpacked before others read them
    words = {
        name: f"{words}; {len(train)} images to draw from, {len(test)} scored"
        for name, (train, test, _, words) in sets.items()
    }
    shares = shares_of(given)
    stamps = {name: stamp_of(*parts[:3], given) for name, parts in sets.items()}
    if not given.table:
        rows = jobs.rows_of(given.out)
        todo = [
            job
            for job in jobs_of(given, {n: len(s[0]) for n, s in sets.items()})
            if not is_done(job, rows, stamps[job.set])
        ]
        for _, made in jobs.run_all(
            partial(work, given=given, shares=shares, stamps=stamps), todo, given.workers, until
        ):
            jobs.add_rows(given.out, COLUMNS, made)
    rows = [row for row in jobs.rows_of(given.out) if row["settings"] == stamps.get(row["set"])]
    told = "\n".join(["# Learning curves", *summary(rows, words)])
    given.out.with_suffix(".md").write_text(told + "\n", encoding="utf-8")
    if given.plot and rows:
        plot(rows, "ap50", given.plot)
    return print(told)


if __name__ == "__main__":
    main()
