"""Recipe 11 measured: the ceiling of its target, models on the same split, and the ways to balance a rare border side by side.

    python benchmarks/ablate_border.py ceiling --data DSB2018                        # each modality, up to --images of it
    python benchmarks/ablate_border.py models --run RUN --work DIR [--set key=value]  # recipe 11 and the tuned Cellpose U-Net
    python benchmarks/ablate_border.py balance --run RUN --work DIR                  # six short trainings
    python benchmarks/ablate_border.py encoders --run RUN --work DIR                 # short trainings of small encoders

RUN is a run folder in which 01 was run with `configs/unet_border.yaml`, whose split counts; of its pictures those of 520 x 696
px take part. Trainings go on where they were stopped, and one that is finished is not made again. Of each model: F1 as Caicedo et
al. count it, nine and ten thresholds, MAP IoU (kaggle), on test images, which chose nothing; tables are markdown.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cellkit.cells.dataset import CellDataset, evenly_spaced, predict_all
from cellkit.cells.instances import Instances
from cellkit.config.reading import load_config
from cellkit.fetch.find import with_weights
from cellkit.files import write_json
from cellkit.formats.coco_reading import read_coco
from cellkit.formats.label_images import read_labels
from cellkit.log import show_log
from cellkit.models import get_backend
from cellkit.models.shared.diameter import diameter_of
from cellkit.models.unet_border import coded
from cellkit.scores.caicedo import caicedo
from cellkit.scores.iou import overlaps
from cellkit.scores.kaggle import kaggle

ROOT = Path(__file__).resolve().parents[1]
SIDES = (520, 696)
BALANCES = {
    name: {"balance": name} for name in ("none", "frequency", "distance", "focal", "dice", "frequency_and_dice")
}
ENCODERS = {
    "tu-resnet10t": {"encoder": "tu-resnet10t", "encoder_depth": 4},
    "resnet18": {"encoder": "resnet18", "encoder_depth": 4},
    "mobilenet_v2": {"encoder": "mobilenet_v2", "encoder_depth": 5},
    "efficientnet-b0": {"encoder": "efficientnet-b0", "encoder_depth": 5},
}
SHORT = {"steps": 150, "eval_every": 50, "val_images": 3, "batch_size": 6, "crop_px": 128, "search_images": 1}
SHORT_IMAGES = 12  # to train on


def ceiling(data: Path, most: int, border_share: float) -> None:
    """Print how well cells of each modality survive encode and decode: those found again at IoU > 0.5, and MAP IoU."""
    with open(data / "index.csv", newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["id"])
    print(
        "| modality | images | cells | found again, IoU > 0.5 | F1, IoU > 0.5 | MAP IoU |\n|---|---:|---:|---:|---:|---:|"
    )
    for modality in sorted({row["modality"] for row in rows}):
        some = [row["id"] for row in rows if row["modality"] == modality]
        some = [some[k] for k in evenly_spaced(len(some), most)]
        truths = [Instances.from_labels(read_labels(data / f"labels/{name}.png").astype(np.int32)) for name in some]
        px = diameter_of(truths)
        pairs = [overlaps(truth, coded(truth, px, border_share)) for truth in truths]
        true, found = sum(pair.n_truth for pair in pairs), sum(pair.n_found for pair in pairs)
        hits = sum(int((pair.iou > 0.5).sum()) for pair in pairs)
        print(
            f"| {modality} | {len(some)} | {true} | {hits / true:.4f} | {2 * hits / (true + found):.4f} "
            f"| {kaggle(pairs, bootstrap=0)['score']:.3f} |",
            flush=True,
        )


def split_of(run: Path) -> dict[str, CellDataset]:
    """Return the images of a run to train on, choose by and report on, those of one size, none flagged."""
    images = read_coco(run / "truth.json", run)
    kept = [k for k, r in enumerate(images.records) if (r.height_px, r.width_px) == SIDES and not r.flags]
    return images.subset(kept).by_split()


def trained(name: str, config: Any, split: Mapping[str, CellDataset], out: Path) -> dict[str, Any]:
    """Return what a training gave, from its file where it is finished: scores on test images and processor seconds."""
    told = out / "scores.json"
    if told.is_file():
        return json.loads(told.read_text())
    out.mkdir(parents=True, exist_ok=True)
    backend, begun = get_backend(name), time.process_time()
    checkpoint = backend.train(split["train"], split["val"], with_weights(config), out)
    train_s, begun = time.process_time() - begun, time.process_time()
    found = predict_all(backend.load(checkpoint), split["test"], name)
    predict_s = time.process_time() - begun
    pairs = [overlaps(*pair) for pair in zip(split["test"].instances, found, strict=True)]
    counted = caicedo(pairs)
    scores = {
        "f1_nine": counted["score"],
        "f1_ten": counted["score_ten"],
        "f1_50": counted["by_threshold"]["0.50"],
        "map_iou": kaggle(pairs, bootstrap=0)["score"],
        "splits": counted["splits"],
        "merges": counted["merges"],
        "cells": [sum(pair.n_truth for pair in pairs), sum(pair.n_found for pair in pairs)],
        "train_s": round(train_s),
        "predict_s": round(predict_s),
    }
    write_json(told, scores)
    return scores


def show_scores(rows: Mapping[str, Mapping[str, Any]]) -> None:
    print("| model | F1, nine | F1, ten | F1, IoU > 0.5 | MAP IoU | splits | merges | training, s | test, s |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for name, told in rows.items():
        four = " | ".join(f"{told[key]:.3f}" for key in ("f1_nine", "f1_ten", "f1_50", "map_iou"))
        counts = " | ".join(str(told[key]) for key in ("splits", "merges", "train_s", "predict_s"))
        print(f"| {name} | {four} | {counts} |", flush=True)


def compare_models(run: Path, work: Path, config: Path, only: str, changes: Mapping[str, Any], called: str) -> None:
    """Print the scores of recipe 11 and of the tuned Cellpose U-Net on the same split."""
    split, cfg, rows = split_of(run), load_config(config, changes), {}
    print(", ".join(f"{name} {len(part)} images, {part.cells} cells" for name, part in split.items()))
    for name, section in (("unet_border", "unet_border"), ("cellpose_unet", "finetune")):
        if only in ("", name):
            rows[name] = trained(name, cfg.section(section), split, work / (called or name))
    show_scores(rows)


def compare_short(run: Path, work: Path, config: Path, changes: Mapping[str, Any], ways: Mapping[str, dict]) -> None:
    """Print the IoU of the border along short trainings that differ in one thing, and the scores on test images."""
    split, short, rows = split_of(run), {f"recipes.unet_border.{key}": value for key, value in SHORT.items()}, {}
    part = {**split, "train": split["train"].sample(SHORT_IMAGES), "test": split["test"].sample(6)}
    for name, own in ways.items():
        own = {f"recipes.unet_border.{key}": value for key, value in own.items()}
        section = load_config(config, {**short, **changes, **own}).section("unet_border")
        rows[name] = trained("unet_border", section, part, work / f"short_{name}")
        with open(work / f"short_{name}" / "history.csv", newline="") as file:
            steps = list(csv.DictReader(file))
        curve = ", ".join(f"{row['step']}: {float(row['iou_border']):.2f}" for row in steps)
        print(f"{name}: IoU of the border at step {curve}", flush=True)
    show_scores(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("ceiling", "models", "balance", "encoders"))
    parser.add_argument("--data", type=Path, default=Path("dsb2018"), help="folder of DSB2018, packed")
    parser.add_argument("--images", type=int, default=12, help="most images of a modality (default 12)")
    parser.add_argument("--run", type=Path, help="run folder in which 01 was run")
    parser.add_argument("--work", type=Path, default=Path("runs/ablate_border"), help="folder of the trainings")
    parser.add_argument("--config", type=Path, default=ROOT / "configs/unet_border.yaml")
    parser.add_argument("--only", default="", choices=("", "unet_border", "cellpose_unet"))
    parser.add_argument("--called", default="", help="folder of this training in --work, where settings are tried")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for cellkit run")
    told = parser.parse_args(arguments)
    show_log()
    changes = {key: yaml.safe_load(value) for key, value in (one.split("=", 1) for one in told.set)}
    if told.what == "ceiling":
        ceiling(told.data, told.images, load_config(told.config).section("unet_border").border_share)
    elif told.what == "models":
        compare_models(told.run, told.work, told.config, told.only, changes, told.called)
    else:
        ways = BALANCES if told.what == "balance" else ENCODERS
        compare_short(told.run, told.work, told.config, changes, ways)


if __name__ == "__main__":
    main()
