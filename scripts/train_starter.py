"""Train the starter weights of cellpose_unet on a CPU; repeat a command to go on where it was.

    python scripts/train_starter.py --data ../shared/data/dsb2018 --out runs/starter_light --widths 16 32 64 128 --steps 3000
    python scripts/train_starter.py --data ../shared/data/dsb2018 --out runs/starter --base cellkit/starter/starter.safetensors

Data, both free of licence: the six kinds of pictures of DSB2018 stage 1 (BBBC038, CC0), the red channel shown as nuclei; and
drawn cells (cellkit.sources.drawn): two stained channels, one of them alone, and unstained cells in transmitted light, shown as
cytoplasm. One DSB2018 picture in five, see `kept_out`, and drawn fields of other seeds are never trained on.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from cellkit.cells.drawn.pictures import KINDS, draw
from cellkit.cells.drawn.transmitted import CONTRASTS
from cellkit.cells.instances import Instances
from cellkit.files import atomic_path
from cellkit.log import LOG, show_log
from cellkit.models import cellpose_unet as unet
from cellkit.models import weights
from cellkit.models.shared.diameter import diameter_of
from cellkit.models.shared.fine_tuning import map_iou
from cellkit.models.shared.flow_loss import FlowLoss, Prepared, prepare
from cellkit.models.training import Plan, fit
from cellkit.models.unet_maps import segment_image
from cellkit.models.unet_network import WIDTHS, load_start
from cellkit.parallel import progress

Pair = tuple[np.ndarray, Instances]  # (H, W, 3) uint8 and its cells

CROP_PX, BATCH, SEED = 160, 8, 0
FLOW_THRESHOLD = 0.0  # no check: a briefly trained network's flows are rough, and 0.4 throws good cells away
SHARES = {"fluor_small": 2.5, "fluor_large": 1.5, "two channels": 2, **dict.fromkeys(CONTRASTS, 0.8)}  # others: 1
HELD = 6  # images of each kind that are scored along the way


def kept_out(image_id: str) -> bool:
    """Tell whether a DSB2018 picture is never trained on: about one in five, by a hash of its id."""
    return hashlib.sha256(f"starter 1\0{image_id}".encode()).digest()[0] < 51


def dsb2018(folder: Path) -> dict[str, list[tuple[bool, Pair]]]:
    """Return, by modality, (whether it is kept out, (picture, truth)) of each picture with at least three nuclei."""
    from PIL import Image

    with open(folder / "index.csv", newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["id"])
    kinds: dict[str, list[tuple[bool, Pair]]] = {}
    for row in progress(rows, "read dsb2018"):
        red = np.array(Image.open(folder / "images" / f"{row['id']}.png").convert("RGB"))[..., 0]
        labels = np.array(Image.open(folder / "labels" / f"{row['id']}.png")).astype(np.int32)
        if len(np.unique(labels)) > 3:
            empty = np.zeros_like(red)
            pair = np.stack([empty, empty, red], axis=-1), Instances.from_labels(labels)
            kinds.setdefault(row["modality"], []).append((kept_out(row["id"]), pair))
    return dict(sorted(kinds.items()))


def drawn(count: int, seed: int, kept: Path) -> dict[str, list[Pair]]:
    """Return about `count` drawn fields of each of `KINDS`, of many styles; those with less than three cells are left out."""
    fields = {kind: [remembered(kind, k, seed, kept) for k in progress(range(count), kind)] for kind in KINDS}
    return {kind: [(image, truth) for image, truth in pairs if len(truth) > 2] for kind, pairs in fields.items()}


def remembered(kind: str, index: int, seed: int, kept: Path) -> Pair:
    """Return one drawn field, drawn once: it is kept in the folder `kept`."""
    path = kept / f"{kind}_{seed}_{index}.npz"
    if not path.is_file():
        image, truth = draw(kind, index, seed)
        with atomic_path(path) as temporary:
            np.savez_compressed(temporary.open("wb"), image=image, labels=truth.paint())
    with np.load(path) as file:
        return file["image"], Instances.from_labels(file["labels"])


class Mixture(FlowLoss):
    """The loss of a step whose crops come from every kind by its share, whatever the number of its images."""

    def __init__(self, network, groups: Sequence[Sequence[Prepared]], shares: Sequence[float]):
        super().__init__(network, [item for group in groups for item in group], BATCH, CROP_PX, SEED)
        self.groups, self.shares = groups, np.array(shares) / sum(shares)

    def choose(self, rng: np.random.Generator) -> Iterator[Prepared]:
        """Choose the images of a batch, each when its crop is drawn."""
        for k in rng.choice(len(self.groups), self.batch_size, p=self.shares):
            yield self.groups[k][rng.integers(len(self.groups[k]))]


class Score:
    """() -> mean over kinds of MAP IoU (kaggle) of images that are kept out, each at the diameter of its own truth."""

    def __init__(self, network, held: dict[str, list[Pair]]):
        self.network, self.held, self.scores = network, held, {}

    def __call__(self) -> float:
        """Return the mean; log that of each kind."""
        for kind, pairs in self.held.items():
            found = (
                segment_image(self.network, image, diameter_of([truth]), FLOW_THRESHOLD, 0.0, 15)
                for image, truth in pairs
            )
            self.scores[kind] = round(map_iou(zip([truth for _, truth in pairs], found, strict=True)), 4)
        LOG.info(", ".join(f"{kind} {score:.3f}" for kind, score in self.scores.items()))
        return float(np.mean(list(self.scores.values())))


def main() -> None:
    """Read, draw, train, write float16 weights and their card."""
    show_log()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, required=True, help="the packed dsb2018 folder (images/, labels/, index.csv)"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/starter"))
    parser.add_argument("--base", default="scratch", help="weights to start from")
    parser.add_argument(
        "--widths", type=int, nargs=4, default=WIDTHS, help="channels of the network; 16 32 64 128 is the light edition"
    )
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--drawn", type=int, default=160, help="drawn training fields of each kind")
    parser.add_argument("--rate", type=float, default=2e-3)
    given = parser.parse_args()
    real, kept = dsb2018(given.data), given.out.parent / "drawn"
    groups = {kind: [pair for out, pair in pairs if not out] for kind, pairs in real.items()} | drawn(
        given.drawn, SEED, kept
    )
    held = {kind: [pair for out, pair in pairs if out][:HELD] for kind, pairs in real.items()} | drawn(
        HELD, SEED + 1000, kept
    )
    held = {kind: pairs for kind, pairs in held.items() if pairs}
    items = [
        [
            prepare(image, truth, diameter_of([truth]), given.out.parent / "flows")
            for image, truth in progress(pairs, kind)
        ]
        for kind, pairs in groups.items()
    ]
    network = load_start(given.base, SEED, given.widths)
    score = Score(network, held)
    plan = Plan(given.steps, eval_every=250, learning_rate=given.rate, weight_decay=1e-4, warmup_steps=50)
    stamp = f"starter {given.widths} {given.steps} {given.drawn} {given.rate} {given.base} {sum(map(len, items))}"
    loss_at = Mixture(network, items, [SHARES.get(kind, 1) for kind in groups])
    history = fit(network, loss_at, score, plan, given.out, stamp, desc="starter")
    score()
    publish(network, given.out / "starter.safetensors", history, score.scores)


def publish(network, path: Path, history, scores: dict[str, float]) -> None:
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
                "by_kind": scores,
                "convention": f"kaggle, mean of kinds, {HELD} images of each held out of training, each at its own diameter",
                "step": history.best_step,
            },
            licence="CC0-1.0 (DSB2018 stage 1, BBBC038) and drawn images",
        )
    )
    print(replace(card, sha256=card.sha256[:12]))


if __name__ == "__main__":
    main()
