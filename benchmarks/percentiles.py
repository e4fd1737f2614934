"""What searching the percentiles that the network is shown would be worth: `python benchmarks/percentiles.py`.

Start weights as they are, nothing trained. In each draw a few labelled images say how the weights are read, by `calibrate`:
diameter, thresholds and least area, searched from cached maps, once for each pair of percentiles (`finetune.normalise`). The
pair that scores best on these images is what a search would take. Scores are of other images, which chose nothing: MAP IoU
(kaggle). **as it is**: 1 and 99; **searched**: the pair taken; **best in sight of the truth**: the pair that scores best on
the scored images themselves, which no search can beat. A finished draw is a row of a CSV, and is not made again.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import jobs
import numpy as np
import real_sets

from cellkit.fetch.find import find_weights
from cellkit.models import cellpose_unet as unet

PAIRS = ((1.0, 99.0), (0.0, 100.0), (0.1, 99.9), (2.0, 98.0), (5.0, 95.0))  # the first is as it is
COLUMNS = ("set", "images", "draw", "low", "high", "base", "on_labelled", "map_iou", "tested")
Job = tuple[str, int, int]  # set, labelled images, draw


def read_with(job: Job, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each pair of percentiles: the scores on the labelled images, and on the others."""
    name, images, draw = job
    train, test, config, _ = real_sets.images_of(
        name, Path(given.data), given.work, 40, given.tested, given.packed, given.base
    )
    some = train.subset(np.sort(real_sets.order_of(len(train), draw)[:images]))
    base = Path(given.base) if Path(given.base).is_file() else find_weights(given.base)
    rows = []
    for low, high in PAIRS:
        changed = {"base": str(base), "precision": "float32", "normalise": (low, high)}
        with tempfile.TemporaryDirectory() as folder:
            read = unet.calibrate(some, config.finetune.model_copy(update=changed), Path(folder) / "read")
            own, scored = (np.mean(real_sets.scores_of(unet, read, part)["map_iou"]) for part in (some, test))
        known = {"set": name, "images": images, "draw": draw, "low": low, "high": high, "base": base.stem}
        rows.append(known | {"on_labelled": f"{own:.5f}", "map_iou": f"{scored:.5f}", "tested": len(test)})
    return rows


def table(rows: list[dict[str, str]]) -> str:
    """Return the means of draws, by set and number of labelled images, as a Markdown table."""
    lines = [
        "| set | labelled | draws | 1 and 99, as it is | searched | best in sight of the truth | pairs taken |",
        "|---|" + "---:|" * 6,
    ]
    for name, images in dict.fromkeys((row["set"], row["images"]) for row in rows):
        each: dict[str, list[dict[str, str]]] = {}
        for row in rows:
            if (row["set"], row["images"]) == (name, images):
                each.setdefault(row["draw"], []).append(row)
        usual, taken, best, names = [], [], [], []
        for own in each.values():
            chosen = max(own, key=lambda row: float(row["on_labelled"]))  # of equal ones the first, as it is
            usual.append(float(own[0]["map_iou"]))
            taken.append(float(chosen["map_iou"]))
            best.append(max(float(row["map_iou"]) for row in own))
            names.append(f"{float(chosen['low']):g}-{float(chosen['high']):g}")
        means = " | ".join(f"{np.mean(values):.3f}" for values in (usual, taken, best))
        lines.append(f"| {name} | {images} | {len(each)} | {means} | {', '.join(names)} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=tuple(real_sets.SETS), default=["two_lines", "dkfz", "dsb2018"])
    parser.add_argument("--images", nargs="+", type=int, default=[1, 3], help="labelled images (default 1 3)")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--tested", type=int, default=14, help="most images that are scored (default 14)")
    parser.add_argument("--base", default="starter_light", help="weights: a name or a path")
    parser.add_argument("--work", type=Path, default=Path("runs/real_sets"), help="folder of converted images")
    parser.add_argument("--out", type=Path, default=Path("runs/percentiles.csv"))
    real_sets.add_arguments(parser)
    jobs.add_arguments(parser)
    given = parser.parse_args()
    jobs.prepare(given.device)
    done = {(row["set"], row["images"], row["draw"]) for row in jobs.rows_of(given.out)}
    todo = [(name, n, draw) for draw in range(given.draws) for n in given.images for name in given.sets]
    left = [job for job in todo if tuple(map(str, job)) not in done]
    for _, rows in jobs.run_all(partial(read_with, given=given), left, given.workers, jobs.until_of(given.stop_after)):
        jobs.add_rows(given.out, COLUMNS, rows)
    print(table(jobs.rows_of(given.out)))


if __name__ == "__main__":
    main()
