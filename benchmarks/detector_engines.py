"""The two engines of Mask R-CNN on the same drawn cells, with anchors of the usual sizes and from the cells that teach.

    python benchmarks/detector_engines.py --steps 120 --seeds 2 --out engines.json

Each training is a process of its own on one thread, from the same adapted encoder, which is frozen, on the same images and as
many steps; the last weights are taken, and thresholds are the defaults. CPU seconds of a step and of finding the cells of a
held-out image; memory is what the training held more than before; MAP IoU (kaggle) on drawn images that no training saw. A
result that is in `--out` is not made again. Where detectron2 is not installed its rows are left out, which is said.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from bench_detector import LINES, drawn_images, settings_of

from cellkit.fetch.find import find_weights
from cellkit.files import read_json, write_json
from cellkit.machine import peak_bytes
from cellkit.models.shared.detector_anchors import anchor_sizes
from cellkit.models.shared.fine_tuning import map_iou
from cellkit.models.shared.inputs import CELL_PX

TRAIN, HELD_OUT = 8, 8  # images of 256 px
ENGINES = {"torchvision": "maskrcnn_torchvision", "detectron2": "maskrcnn_detectron2"}
ANCHORS = ("usual", "data")


def train_one(base: str, engine: str, anchors: str, seed: int, steps: int) -> dict[str, float]:
    """Train, in this process; return CPU seconds, memory and score."""
    import torch

    from cellkit.models.maskrcnn_detect import detect_image
    from cellkit.models.shared.detector_batches import DetectorLoss, scaled
    from cellkit.models.training import fit, plan_of

    torch.set_num_threads(1)
    backend = importlib.import_module(f"cellkit.models.{ENGINES[engine]}")
    config = backend.TrainSettings(
        start=base, steps=steps, eval_every=steps, learning_rate=0.002, average_steps=20, seed=seed, anchors=anchors
    )
    settings, pairs = settings_of(config), drawn_images(1000 * seed, TRAIN)
    if anchors == "data":
        cells = [truth for _, truth in pairs]
        settings["anchor_sizes"] = anchor_sizes(cells, CELL_PX, *backend.LEVELS[config.backbone])
    model = backend._start(config, settings, LINES)
    loss_at = DetectorLoss(model, [scaled(*pair, CELL_PX) for pair in pairs], config)
    before, begun = peak_bytes(), time.process_time()
    with tempfile.TemporaryDirectory() as out:
        fit(model, loss_at, lambda: 0.0, plan_of(config, engine), Path(out), "engines", choose=False)
    seconds, peak = time.process_time() - begun, peak_bytes() - before
    held_out = drawn_images(100_000, HELD_OUT)
    begun = time.process_time()
    found = [detect_image(model, image, settings) for image, _ in held_out]
    finding = (time.process_time() - begun) / HELD_OUT
    score = map_iou(zip([truth for _, truth in held_out], found, strict=True))
    return {"step": seconds / steps, "find": finding, "megabytes": peak / 1e6, "score": score}


def main() -> None:
    """Show the table; with --task, be one of its trainings."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=120, help="of each training (default 120)")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of a row (default 1)")
    parser.add_argument("--base", default="starter_light", help="the encoder (default starter_light)")
    parser.add_argument("--out", type=Path, help="a JSON file that keeps the results")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.task:
        print(json.dumps(train_one(**json.loads(asked.task))))
        return
    kept = read_json(asked.out) if asked.out and asked.out.is_file() else {}
    base = str(find_weights(asked.base))
    engines = [name for name in ENGINES if name != "detectron2" or importlib.util.find_spec("detectron2")]
    for seed in range(asked.seeds):
        for engine in engines:
            for anchors in ANCHORS:
                task = {"base": base, "engine": engine, "anchors": anchors, "seed": seed, "steps": asked.steps}
                key = json.dumps({**task, "base": asked.base})
                if key not in kept:
                    line = [sys.executable, __file__, "--task", json.dumps(task)]
                    done = subprocess.run(line, check=True, capture_output=True, text=True)
                    kept[key] = json.loads(done.stdout.splitlines()[-1])
                    if asked.out:
                        write_json(asked.out, kept, indent=1)
    print(f"{asked.steps} steps of 4 crops of 192 px on {TRAIN} drawn images, {asked.seeds} seeds\n")
    print("| engine | anchors | CPU s a step | CPU s an image | memory more, MB | MAP IoU, held out |")
    print("|---|---|---|---|---|---|")
    for engine in engines:
        for anchors in ANCHORS:
            told = {"engine": engine, "anchors": anchors, "steps": asked.steps, "base": asked.base}
            rows = [row for key, row in kept.items() if told.items() <= json.loads(key).items()]
            mean = {name: np.mean([row[name] for row in rows]) for name in rows[0]}
            scores = ", ".join(f"{row['score']:.3f}" for row in rows)
            print(
                f"| {engine} | {anchors} | {mean['step']:.2f} | {mean['find']:.2f} | {mean['megabytes']:.0f} | "
                f"{mean['score']:.3f} ({scores}) |"
            )
    if "detectron2" not in engines:
        print("\ndetectron2 is not installed: its rows are left out")


if __name__ == "__main__":
    main()
