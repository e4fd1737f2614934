"""Ours against Cellpose 3.1.1.3, the last with the U-Net: `python benchmarks/bench_cellpose.py [--threads 1 2] [--budget S]`.

Finding cells (`CellposeModel.eval`) and a training step (`train_seg`, at least 8 crops an epoch, as its authors train on few
images), in one run: the same network, weights to start from, drawn images, diameter, batch and crop, float32. Every
measurement is a process of its own. What it takes once, imports and flows, is left out by asking for few rounds or steps,
then for more; of `train_seg`, which trains whole epochs, by the crops that it took. `--budget` trains both for that many
seconds of processor time and scores them on images kept aside.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from math import isnan
from pathlib import Path
from statistics import median
from typing import Any

import cellpose3
import numpy as np

DIAMETER_PX = 30.0
WANTED = {"find": "at least 5 times as fast", "step": "at most 0.85"}
THRESHOLDS = {"flow_threshold": 0.4, "cellprob_threshold": 0.0}
Measured = dict[str, float]
Done = tuple[float, float]  # score, and how many rounds or steps were done


# ---- images --------------------------------------------------------------------------------------------------------
def draw(folder: Path, images: int, side_px: int) -> None:
    """Write drawn images of two lines and their cells, twice as many as asked for: half to train on, half to score."""
    from cellkit.cells.drawn.camera import expose
    from cellkit.cells.drawn.field import draw_field
    from cellkit.cells.drawn.style import FieldStyle

    style, arrays = FieldStyle(size_px=(side_px, side_px), diameter_px=DIAMETER_PX), {}
    for k in range(2 * images):
        field = draw_field((("HEK",), ("N2a",), ("HEK", "N2a"))[k % 3], style, [11, k])
        image = np.zeros((side_px, side_px, 3), np.uint8)
        for colour, plane in zip((2, 1), expose(field, style, [11, k, 1]), strict=True):
            low, high = np.percentile(plane, (0.3, 99.8))
            image[..., colour] = np.clip((plane - low) / max(high - low, 1), 0, 1) * 255
        arrays |= {f"image_{k}": image, f"labels_{k}": field.labels.astype(np.int32)}
    np.savez(folder / "drawn.npz", **arrays)


def read(folder: Path, scored: bool) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the images (H, W, 3) uint8 to train on, or those to score, and their labels (H, W) int32."""
    with np.load(folder / "drawn.npz") as drawn:
        every = range(len(drawn.files) // 2)
        half = every[len(every) // 2 :] if scored else every[: len(every) // 2]
        return [drawn[f"image_{k}"] for k in half], [drawn[f"labels_{k}"] for k in half]


def data_set(folder: Path) -> Any:
    """Return the training images as a `CellDataset`, one image of which serves as validation too."""
    from cellkit.cells.dataset import CellDataset
    from cellkit.cells.instances import Instances
    from cellkit.cells.records import ImageRecord
    from cellkit.microscope.journal import png_parts

    images, labels = read(folder, scored=False)
    images, labels = [*images, images[0]], [*labels, labels[0]]
    records = []
    for k, image in enumerate(images):
        (folder / f"{k}.png").write_bytes(b"".join(png_parts(image, float("nan"))))
        split = "train" if k < len(images) - 1 else "val"
        records.append(ImageRecord(str(k), f"{k}.png", *image.shape[:2], cell_type="a", split=split))
    cells = [Instances.from_labels(one) for one in labels]
    return CellDataset(records, cells, ("a",), folder, list(range(1, len(records) + 1)))


def score(labels: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
    """Return MAP IoU (kaggle) of label images."""
    from cellkit.cells.instances import Instances
    from cellkit.scores.iou import overlaps
    from cellkit.scores.kaggle import kaggle

    pairs = zip(labels, found, strict=True)
    every = [overlaps(Instances.from_labels(a), Instances.from_labels(b.astype(np.int32))) for a, b in pairs]
    return kaggle(every, bootstrap=0)["score"]


# ---- the jobs, each in a process of its own ------------------------------------------------------------------------
def ours_find(folder: Path, weights: str, rounds: int) -> Done:
    """Find the cells of the images kept aside; return the score, and the rounds."""
    from cellkit.models import cellpose_unet as unet

    images, labels = read(folder, scored=True)
    find = unet.load(Path(weights), unet.Settings(diameter_px=DIAMETER_PX, precision="float32", **THRESHOLDS))
    for _ in range(rounds):
        found = [cells.paint() for cells in find(images)]
    return score(labels, found), rounds


def theirs_find(folder: Path, weights: str, rounds: int, mkldnn: bool = False) -> Done:
    """Do the same with `CellposeModel.eval`."""
    images, labels = read(folder, scored=True)
    options = {"rounds": rounds, "mkldnn": mkldnn, "min_size": 15, **THRESHOLDS}
    return score(
        labels, [one.labels for one in cellpose3.evaluate(Path(weights), images, DIAMETER_PX, **options)]
    ), rounds


def ours_train(folder: Path, weights: str, steps: int, to: str, batch: int, crop_px: int) -> Done:
    """Train for so many steps; return 0, and the steps. The one validation image is scored before and after."""
    from cellkit.models import cellpose_unet as unet

    images = data_set(folder)
    config = unet.TrainSettings(
        base=weights, diameter_px=DIAMETER_PX, steps=steps, eval_every=max(steps, 1), batch_size=batch, crop_px=crop_px,
        precision="float32", warmup_steps=min(20, steps), learning_rate=6e-4, **THRESHOLDS,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as out:
        made = unet.train(images.select("train"), images.select("val"), config, Path(out))
        for suffix in (".safetensors", ".json"):
            made.with_suffix(suffix).replace(Path(to).with_suffix(suffix))
    return 0.0, steps


def theirs_train(folder: Path, weights: str, steps: int, to: str, batch: int, crop_px: int) -> Done:
    """Do the same with `train_seg`, as its authors train on few images (paper/cpsam/train_subsets.py, AdamW 5e-3).

    It trains whole epochs: the steps returned are those of as many crops.
    """
    images, labels = read(folder, scored=False)
    per_epoch = max(8, len(images))
    epochs = max(round(steps * batch / per_epoch), 1)
    options = {"n_epochs": epochs, "learning_rate": 5e-3, "weight_decay": 1e-4, "batch_size": batch}
    options |= {"nimg_per_epoch": per_epoch, "min_train_masks": 1, "bsize": crop_px}
    cellpose3.train(Path(weights), images, labels, Path(to), **options)
    return 0.0, epochs * per_epoch / batch


JOBS = {job.__name__: job for job in (ours_find, theirs_find, ours_train, theirs_train)}


def measure(job: str, threads: int, folder: Path, *arguments: Any) -> Measured:
    """Do a job in a process of its own; return its score, what was done, processor seconds and peak memory (GB)."""
    env = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))}
    command = [sys.executable, __file__, "--job", job, str(folder), json.dumps(arguments)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{job}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def do_job(job: str, folder: Path, arguments: list[Any]) -> None:
    """Do a job in this process, and print what it took: this process, or the one that Cellpose 3 ran in."""
    import resource

    value, done = JOBS[job](folder, *arguments)
    used = resource.getrusage(resource.RUSAGE_CHILDREN if job.startswith("theirs") else resource.RUSAGE_SELF)
    held = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps({"score": value, "done": done, "cpu_s": used.ru_utime + used.ru_stime, "peak_gb": held / 1e9}))


# ---- the table -----------------------------------------------------------------------------------------------------
def each(
    job: str, threads: int, folder: Path, few: int, many: int, repeats: int, *before: Any, **after: Any
) -> Measured:
    """Return what one round or step takes (processor seconds), the median of the repeats; and score and memory.

    It is NaN, which is said, where the longer job took no more processor time: what is measured is too short.
    """
    runs = []
    for _ in range(repeats):
        short, long = (measure(job, threads, folder, *before, count, *after.values()) for count in (few, many))
        if long["done"] <= short["done"]:
            sys.exit(f"{job}: {many} are no more than {few}, as whole epochs are trained; ask for more --steps")
        runs.append({**long, "cpu_s": (long["cpu_s"] - short["cpu_s"]) / (long["done"] - short["done"])})
    found = {name: median(run[name] for run in runs) for name in runs[0]}
    if found["cpu_s"] <= 0:
        print(f"    {job}: {many} took no longer than {few}; ask for more of them, or for more --repeats")
        found["cpu_s"] = float("nan")
    return found


def print_find(
    folder: Path, weights: dict[str, str], threads: int, repeats: int, rounds: Sequence[int], images: int, side_px: int
) -> None:
    """Print how fast cells are found."""
    pixels = images * side_px**2 / 1e6
    rows = {"ours": each("ours_find", threads, folder, *rounds, repeats, weights["ours"])}
    for mkldnn in (False, True):
        name = f"cellpose 3, mkldnn {'on' if mkldnn else 'off'}"
        rows[name] = each("theirs_find", threads, folder, *rounds, repeats, weights["theirs"], mkldnn=mkldnn)
    print(
        f"\nfinding cells, {images} images of {side_px} px, {threads} thread(s); wanted: {WANTED['find']}, no lower score"
    )
    for name, row in rows.items():
        faster = row["cpu_s"] / rows["ours"]["cpu_s"]
        told = f"{images / row['cpu_s']:8.2f} images and {pixels / row['cpu_s']:7.3f} Mpx a CPU second"
        print(f"    {name:<24}{told}  peak {row['peak_gb']:.2f} GB  MAP IoU {row['score']:.3f}  time x {faster:.2f}")


def print_step(
    folder: Path, weights: dict[str, str], threads: int, repeats: int, steps: Sequence[int], batch: int, crop_px: int
) -> dict[str, float]:
    """Print what a training step takes; return it (processor seconds)."""
    print(
        f"\na training step, {batch} crops of {crop_px} px, {threads} thread(s); wanted: {WANTED['step']} of train_seg's"
    )
    rows = {}
    for name in ("ours", "theirs"):
        to = str(folder / f"step_{name}")
        rows[name] = each(
            f"{name}_train", threads, folder, *steps, repeats, weights[name], to=to, batch=batch, crop_px=crop_px
        )
    for name, row in rows.items():
        us = 1e6 * row["cpu_s"] / (batch * crop_px**2)
        share = f"{row['cpu_s'] / rows['theirs']['cpu_s']:.2f} of train_seg's"
        print(f"    {name:<10}{row['cpu_s']:8.2f} CPU s  {us:7.3f} us a pixel  peak {row['peak_gb']:.2f} GB  {share}")
    return {name: row["cpu_s"] for name, row in rows.items()}


def print_budget(
    folder: Path, weights: dict[str, str], threads: int, step_s: dict[str, float], budget_s: float, *sizes: int
) -> None:
    """Print the score of both after the same processor time of training."""
    print(f"\nafter {budget_s:g} CPU seconds of training steps, {threads} thread(s), on images kept aside")
    for name in ("ours", "theirs"):
        if isnan(step_s[name]):
            print(f"    {name:<10}what a step takes is not known")
            continue
        to, steps = folder / f"trained_{name}.safetensors", max(round(budget_s / step_s[name]), 1)
        trained = measure(f"{name}_train", threads, folder, weights[name], steps, str(to), *sizes)
        found = measure(f"{name}_find", threads, folder, str(to), 1)
        print(f"    {name:<10}{trained['done']:5g} steps  MAP IoU {found['score']:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--images", type=int, default=8, help="to train on, and as many to find cells in")
    parser.add_argument("--side", type=int, default=256, help="height and width of an image (px)")
    parser.add_argument("--rounds", type=int, nargs=2, default=[1, 4], help="few and more times that cells are found")
    parser.add_argument("--steps", type=int, nargs=2, default=[2, 8], help="few and more training steps")
    parser.add_argument(
        "--budget", type=float, default=0.0, help="CPU seconds of training before both are scored; 0 = none"
    )
    parser.add_argument("--batch", type=int, default=8, help="crops of a step")
    parser.add_argument("--crop", type=int, default=224, help="height and width of a crop (px)")
    parser.add_argument("--job", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        return do_job(given.job[0], Path(given.job[1]), json.loads(given.job[2]))
    for name, (few, many) in (("rounds", given.rounds), ("steps", given.steps)):
        if not 0 < few < many:
            parser.error(f"--{name} {few} {many}: the second number has to be the larger one, and both above 0")
    if why := cellpose3.missing():
        return print(f"skipped: {why}")
    from cellkit.fetch.find import find_weights
    from cellkit.models.unet_network import load_network

    print(f"{os.cpu_count()} processors, of which {os.getloadavg()[0]:.1f} were asked for as this began")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        draw(folder, given.images, given.side)
        starter = find_weights("starter")
        theirs = cellpose3.save_weights(load_network(starter, "float32")[0], folder / "starter")
        weights = {"ours": str(starter), "theirs": str(theirs)}
        for threads in given.threads:
            print_find(folder, weights, threads, given.repeats, given.rounds, given.images, given.side)
            step_s = print_step(folder, weights, threads, given.repeats, given.steps, given.batch, given.crop)
            if given.budget:
                print_budget(folder, weights, threads, step_s, given.budget, given.batch, given.crop)
    return None


if __name__ == "__main__":
    main()
