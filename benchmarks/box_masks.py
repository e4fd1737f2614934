"""What masks made from boxes cost, where the outlines are known: `python benchmarks/box_masks.py --data FOLDER --out FILE.csv`.

The outlines of each set become boxes, and the boxes masks, in the three ways of `cellkit.labelling.box_masks`. These masks are
compared with the outlines; and a U-Net with touching border is trained on them, and as often on the outlines themselves, and
what it finds in other images is compared with their outlines, and its boxes with their boxes. A row that is in FILE.csv is not
made again.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs import add_rows, prepare, rows_of, until_of
from real_sets import images_of

from cellkit.cells.dataset import CellDataset, predict_all
from cellkit.cells.drawn.pictures import draw
from cellkit.cells.records import ImageRecord
from cellkit.labelling.box_masks import BOX_WAYS, with_masks
from cellkit.models import unet_border
from cellkit.scores.conventions import compare_conventions
from cellkit.scores.iou import overlap_images
from cellkit.scores.kaggle import kaggle

OUTLINES = "outlines"
COLUMNS = (
    "data", "way", "steps", "train", "test", "cells", "mask_iou", "mask_map_iou", "otherwise", "found_map_iou",
    "found_box_ap50", "found", "true", "cpu_s",
)  # fmt: skip
NETWORK = {
    "encoder": "resnet18", "encoder_depth": 4, "decoder_width": 8, "crop_px": 128, "eval_every": 10_000, "channels": "all",
    "precision": "float32", "average_steps": 20,
}  # fmt: skip


def drawn(folder: Path, images: int, kind: str = "two channels") -> tuple[CellDataset, CellDataset]:
    """Draw images to train on, and as many others to score."""
    from PIL import Image

    records, cells = [], []
    for k in range(2 * images):
        image, truth = draw(kind, k, 31)
        Image.fromarray(image).save(folder / f"{k}.png")
        records.append(ImageRecord(str(k), f"{k}.png", *truth.shape, split="train" if k < images else "test"))
        cells.append(truth)
    both = CellDataset(records, cells, (), folder, list(range(1, 2 * images + 1)), ["truth"] * 2 * images)
    return both.select("train"), both.select("test")


def sets(names: list[str], data: Path, work: Path, images: int) -> Iterator[tuple[str, CellDataset, CellDataset]]:
    """Yield name, images to train on, images to score."""
    for name in names:
        if name == "drawn":
            (work / name).mkdir(parents=True, exist_ok=True)
            yield name, *drawn(work / name, images)
        else:
            train, test, _, _ = images_of(name, data, work, images, images)
            yield name, train, test


def masks_row(train: CellDataset, way: str) -> tuple[CellDataset, dict[str, Any]]:
    """Return the training images with masks made that way, and how these compare with their outlines."""
    if way == OUTLINES:
        return train, {"mask_iou": 1.0, "mask_map_iou": 1.0, "otherwise": 0}
    boxes = replace(train, instances=[cells.as_boxes() for cells in train.instances])
    made, told = with_masks(boxes, way)
    ious = []
    for truth, cells in zip(train.instances, made.instances, strict=True):
        for k in range(len(truth)):
            one, other = truth.mask(k), cells.mask(k)
            ious.append((one & other).sum() / (one | other).sum())
    score = kaggle(overlap_images(train.instances, made.instances))["score"]
    otherwise = sum(int(part.split()[0]) for part in told.split("; ")[1:])
    return made, {
        "mask_iou": round(sum(ious) / len(ious), 4),
        "mask_map_iou": round(score, 4),
        "otherwise": otherwise,
    }


def trained_row(made: CellDataset, test: CellDataset, steps: int) -> dict[str, Any]:
    """Train on the masks, and return how what is found compares with the outlines of other images; without steps, nothing."""
    if not steps:
        return dict.fromkeys(("found_map_iou", "found_box_ap50", "found", "true"), "-")
    config = unet_border.TrainSettings(**NETWORK, steps=steps)
    folder = Path(tempfile.mkdtemp(prefix="box_masks-"))
    try:
        found = predict_all(unet_border.load(unet_border.train(made, made.subset([]), config, folder)), test)
    finally:
        shutil.rmtree(folder)
    boxes = [cells.as_boxes() for cells in found]
    told = compare_conventions([cells.as_boxes() for cells in test.instances], boxes, conventions=["voc"], bootstrap=0)
    return {
        "found_map_iou": round(kaggle(overlap_images(test.instances, found))["score"], 4),
        "found_box_ap50": round(told["conventions"]["voc"]["score"], 4),
        "found": sum(map(len, found)),
        "true": test.cells,
    }


def table(rows: list[dict[str, str]]) -> str:
    """Return the rows as a table of Markdown."""
    head = [
        "data",
        "way",
        "steps",
        "IoU of the masks",
        "their MAP IoU",
        "MAP IoU of the U-Net",
        "AP@.5 of its boxes",
        "found / true",
    ]
    keys = ("data", "way", "steps", "mask_iou", "mask_map_iou", "found_map_iou", "found_box_ap50")
    lines = [f"| {' | '.join(head)} |", f"|---|---|{'---:|' * (len(head) - 2)}"]
    lines += [f"| {' | '.join(row[key] for key in keys)} | {row['found']} / {row['true']} |" for row in rows]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the real sets")
    parser.add_argument("--out", type=Path, default=Path("box_masks.csv"), help="table of results")
    parser.add_argument("--work", type=Path, default=Path("box_masks_sets"), help="folder of converted images")
    parser.add_argument("--sets", nargs="+", default=["drawn", "two_lines", "dsb2018"], help="which sets")
    parser.add_argument("--images", type=int, default=8, help="images to train on, and as many to score (default 8)")
    parser.add_argument("--steps", type=int, default=80, help="steps of a training (default 80); 0 = none is trained")
    parser.add_argument("--minutes", type=float, default=0.0, help="begin no row after that (default 0: never)")
    given = parser.parse_args()
    prepare("cpu")
    until = until_of(given.minutes)
    for name, train, test in sets(given.sets, given.data, given.work, given.images):
        for way in (OUTLINES, *BOX_WAYS):
            key = (name, way, str(given.steps))
            if any((row["data"], row["way"], row["steps"]) == key for row in rows_of(given.out)):
                continue
            if until and time.monotonic() > until:
                sys.exit("the time is up: repeat the command for the rows that lack")
            begun = time.process_time()
            made, row = masks_row(train, way)
            row |= trained_row(made, test, given.steps)
            row |= {
                "data": name,
                "way": way,
                "steps": given.steps,
                "train": len(train),
                "test": len(test),
                "cells": train.cells,
            }
            add_rows(given.out, COLUMNS, [row | {"cpu_s": round(time.process_time() - begun)}])
    print(table(rows_of(given.out)))


if __name__ == "__main__":
    main()
