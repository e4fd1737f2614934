"""Train the starter weights of cellpose_unet from random numbers, on a CPU, in an hour or two; repeat the command to resume.

    python scripts/train_starter.py --data ../shared/data/dsb2018 --out runs/starter

Data: the fluorescence images of DSB2018 stage 1 (BBBC038, CC0) with nuclei in blue and green empty, and drawn two-channel
cells (cellkit.sources.drawn). One DSB2018 image in ten, and drawn fields of other seeds, are kept out for validation.
"""

from __future__ import annotations

import argparse
import csv
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.log import show_log
from cellkit.models import cellpose_unet as unet
from cellkit.models import weights
from cellkit.models.shared.diameter import diameter_of
from cellkit.models.shared.flows import FlowLoss, prepare
from cellkit.models.training import Plan, fit
from cellkit.models.unet_maps import segment_image
from cellkit.models.unet_network import WIDTHS, load_start
from cellkit.parallel import progress
from cellkit.sources.drawn.camera import expose
from cellkit.sources.drawn.field import draw_field
from cellkit.sources.drawn.style import random_style

CROP_PX, BATCH, SEED = 160, 8, 0
FLOW_THRESHOLD = 0.0  # no check: a briefly trained network's flows are rough, and 0.4 throws good cells away


def dsb2018(folder: Path) -> list[tuple[np.ndarray, Instances]]:
    """Return (image with nuclei in blue, truth) of every fluorescence image with at least three nuclei, sorted by id."""
    from PIL import Image

    pairs = []
    with open(folder / "index.csv", newline="") as file:
        rows = sorted(
            (row for row in csv.DictReader(file) if row["modality"].startswith("fluor")), key=lambda row: row["id"]
        )
    for row in progress(rows, "read dsb2018"):
        grey = np.array(Image.open(folder / "images" / f"{row['id']}.png").convert("L"))
        labels = np.array(Image.open(folder / "labels" / f"{row['id']}.png")).astype(np.int32)
        if len(np.unique(labels)) > 3:
            empty = np.zeros_like(grey)
            pairs.append((np.stack([empty, empty, grey], axis=-1), Instances.from_labels(labels)))
    return pairs


def drawn(count: int, seed: int) -> list[tuple[np.ndarray, Instances]]:
    """Return drawn fields of many styles: two channels (3 in 5), cytoplasm alone (1 in 5), nuclei alone (1 in 5)."""
    pairs = []
    for index in progress(range(count), "draw cells"):
        rng = np.random.default_rng([seed, index])
        style = random_style(rng, (256, 256))
        lines = (("HEK",), ("N2a",), ("HEK", "N2a"))[index % 3]
        field = draw_field(lines, style, [seed, index])
        nuclei, cytoplasm = (eight_bit(plane) for plane in expose(field, style, [seed, index, 1]))
        labels, kind = field.labels, index % 5
        if kind == 3:
            nuclei = np.zeros_like(nuclei)
        elif kind == 4:
            cytoplasm, labels = np.zeros_like(cytoplasm), field.nuclei_labels
        truth = Instances.from_labels(labels)
        truth = truth[truth.areas_px >= 15]
        if len(truth) > 2:
            pairs.append((np.stack([np.zeros_like(nuclei), cytoplasm, nuclei], axis=-1), truth))
    return pairs


def eight_bit(plane: np.ndarray) -> np.ndarray:
    """Scale as 01_convert does: the percentiles 0.3 and 99.8 become 0 and 255."""
    low, high = np.percentile(plane, (0.3, 99.8))
    return (np.clip((plane - low) / max(high - low, 1), 0, 1) * 255).round().astype(np.uint8)


class Score:
    """() -> mean MAP IoU (kaggle) of the validation images, each at the diameter of its own truth."""

    def __init__(self, network, pairs):
        self.network, self.pairs = network, pairs

    def __call__(self) -> float:
        """Return the mean; print that of each half: real, drawn."""
        from cellkit.scores.iou import overlaps
        from cellkit.scores.kaggle import kaggle

        values = []
        for image, truth in self.pairs:
            found = segment_image(self.network, image, diameter_of([truth]), FLOW_THRESHOLD, 0.0, 15)
            values.append(kaggle([overlaps(truth, found)], bootstrap=0)["score"])
        half = len(values) // 2
        print(f"first half {np.mean(values[:half]):.4f}, second half {np.mean(values[half:]):.4f}", file=sys.stderr)
        return float(np.mean(values))


def main() -> None:
    """Read, train, write float16 weights and their card."""
    show_log()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, required=True, help="the packed dsb2018 folder (images/, labels/, index.csv)"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/starter"))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--drawn", type=int, default=500, help="drawn training fields")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument(
        "--widths", type=int, nargs=4, default=WIDTHS, help="channels of the network; 16 32 64 128 is the light edition"
    )
    given = parser.parse_args()
    real = dsb2018(given.data)
    kept = [pair for index, pair in enumerate(real) if index % 10]
    held = real[::10][:24] + drawn(26, SEED + 1000)[:24]
    pairs = kept + drawn(given.drawn, SEED)
    items = [
        prepare(image, truth, diameter_of([truth]), given.out / "flows") for image, truth in progress(pairs, "flows")
    ]
    network = load_start("scratch", SEED, given.widths)
    plan = Plan(given.steps, eval_every=200, learning_rate=given.rate, weight_decay=1e-4, warmup_steps=50)
    loss_at = FlowLoss(network, items, BATCH, CROP_PX, SEED)
    stamp = f"starter {given.steps} {given.drawn} {given.rate} {len(real)}{network.config or ''}"
    history = fit(network, loss_at, Score(network, held), plan, given.out, stamp, desc="starter")
    publish(network, given.out / "starter.safetensors", history)


def publish(network, path: Path, history) -> None:
    """Write the weights as float16 with their card."""
    tensors = {k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()}
    card = weights.read_card(
        weights.save_checkpoint(
            path,
            tensors,
            unet.NAME,
            config={**unet.DEFAULTS, "diameter_px": 30.0, "flow_threshold": FLOW_THRESHOLD, **network.config},
            metrics={
                "map_iou_validation": round(history.best_score, 4),
                "convention": "kaggle, mean of 24 DSB2018 and 24 drawn fields held out of training, each at its own diameter",
                "step": history.best_step,
            },
            licence="CC0-1.0 (DSB2018 stage 1, BBBC038) and drawn images",
        )
    )
    print(replace(card, sha256=card.sha256[:12]))


if __name__ == "__main__":
    main()
