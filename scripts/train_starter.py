"""Train the starter weights of cellpose_unet; repeat a command to go on where it was. The second one needs the first's result.

    python scripts/train_starter.py --data ../shared/data/dsb2018 --out runs/starter
    python scripts/train_starter.py --data ../shared/data/dsb2018 --out runs/starter_light --widths 16 32 64 128 \\
        --teacher runs/starter/starter.safetensors

A GPU takes minutes, given as many --workers as there are processor cores. A CPU takes days, at --batch 8 --crop 160 and
2,000 steps hours.

Data, both free of licence: the six kinds of pictures of DSB2018 stage 1 (BBBC038, CC0), the red channel shown as nuclei; and
drawn cells (cellkit.sources.drawn): two stained channels, one of them alone, and unstained cells in transmitted light, shown as
cytoplasm. One DSB2018 picture in five, see `kept_out`, and drawn fields of other seeds are never trained on.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from cellkit.cells.drawn.pictures import KINDS, draw
from cellkit.cells.drawn.transmitted import CONTRASTS
from cellkit.cells.instances import Instances
from cellkit.errors import UserError
from cellkit.files import atomic_path, sha256_file
from cellkit.log import LOG, show_log
from cellkit.models import cellpose_unet as unet
from cellkit.models import weights
from cellkit.models.shared.diameter import diameter_of
from cellkit.models.shared.fine_tuning import chosen_by, map_iou
from cellkit.models.shared.flow_loss import Crop, FlowLoss, Prepared, Variation, crop, flow_loss, prepare
from cellkit.models.shared.threshold_search import score_maps
from cellkit.models.training import Plan, fingerprint, fit
from cellkit.models.unet_maps import predict_maps, segment_image
from cellkit.models.unet_network import WIDTHS, load_network, load_start
from cellkit.parallel import progress

Pair = tuple[np.ndarray, Instances]  # (H, W, 3) uint8 and its cells

SEED = 0
FLOW_THRESHOLD = 0.0  # of scores along the way: a briefly trained network's flows are rough, 0.4 throws good cells away
FLOWS, CELLPROBS, LEAST_PX = (0.4, 0.8, 0.0), (0.0, 0.5, -0.5, -1.0, -1.5, -2.0), 15  # searched in the end
SHARES = {"fluor_small": 2.5, "fluor_large": 1.5, "two channels": 2, **dict.fromkeys(CONTRASTS, 0.8)}  # others: 1
HELD = 6  # images of each kind that are scored along the way, and choose step and thresholds
STRONG = 0.5  # of the crops, those whose intensities are varied strongly


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


def drawn(count: int, seed: int, kept: Path, workers: int) -> dict[str, list[Pair]]:
    """Return about `count` drawn fields of each of `KINDS`, of many styles; those with less than three cells are left out."""
    fields = {
        kind: in_parallel(remembered, [(kind, k, seed, kept) for k in range(count)], kind, workers) for kind in KINDS
    }
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


def prepared(pair: Pair, cache: Path) -> Prepared:
    """Return a picture at network scale with its flows."""
    image, truth = pair
    return prepare(image, truth, diameter_of([truth]), cache)


def in_parallel(make: Callable, given: Sequence[tuple], desc: str, workers: int) -> list:
    """Return what `make` makes of each tuple, in order."""
    LOG.info(desc)
    if workers < 2:
        return [make(*each) for each in given]
    with Pool(workers) as pool:
        return pool.starmap(make, given, chunksize=4)


class Mixture(FlowLoss):
    """The loss of a step whose crops come from every kind by its share, whatever the number of its images.

    Parameters
    ----------
    groups : sequence of sequences of Prepared
        The images of each kind.
    teacher : torch.nn.Module, optional
        A wider network: half of the loss is then measured against what it finds in the crops.
    workers : int
        Processes that draw crops; 0 = none beside this one. The crops are the same.
    """

    def __init__(
        self, network, groups: Sequence[Sequence[Prepared]], shares, batch: int, crop_px: int, teacher, workers
    ):
        super().__init__(network, [item for group in groups for item in group], batch, crop_px, SEED)
        self.groups, self.shares = groups, np.array(shares) / sum(shares)
        self.teacher, self.workers, self.loader = teacher, workers, None

    def choose(self, rng: np.random.Generator) -> Iterator[Prepared]:
        """Choose the images of a batch, each when its crop is drawn."""
        for k in rng.choice(len(self.groups), self.batch_size, p=self.shares):
            yield self.groups[k][rng.integers(len(self.groups[k]))]

    def draw(self, step: int) -> Crop:
        """Draw the batch of a step."""
        rng = np.random.default_rng([self.seed, step])
        kinds = (Variation(strong=bool(rng.random() < STRONG)) for _ in range(self.batch_size))
        crops = [crop(item, rng, self.crop_px, kind) for item, kind in zip(self.choose(rng), kinds, strict=True)]
        return Crop(np.stack([one.planes for one in crops]), np.stack([one.target for one in crops]), None)

    def batch(self, step: int) -> Crop:
        """Return the batch of a step; steps are asked for one after the other."""
        if not self.workers:
            return self.draw(step)
        if self.loader is None:
            steps = Steps(self.draw)
            order = range(step, len(steps))
            self.loader = iter(DataLoader(steps, None, sampler=order, num_workers=self.workers, prefetch_factor=4))
        planes, target = next(self.loader)
        return Crop(planes.numpy(), target.numpy(), None)

    def __call__(self, step: int) -> torch.Tensor:
        """Return the loss tensor of a step."""
        if self.teacher is None:
            return super().__call__(step)
        drawn, arithmetic = self.drawn(step), self.network.arithmetic
        planes, target = (torch.from_numpy(x).to(arithmetic.device) for x in drawn[:2])
        with arithmetic.autocast():
            maps = self.network(planes).float()
            with torch.no_grad():
                found = self.teacher(planes).float()
        found[:, 2].sigmoid_()
        return 0.5 * flow_loss(maps, target) + 0.5 * flow_loss(maps, found)


class Steps(Dataset):
    """Step number -> planes and targets of its batch, for processes that draw ahead."""

    def __init__(self, draw: Callable[[int], Crop]):
        self.draw = draw

    def __len__(self) -> int:
        return 10**7

    def __getitem__(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        import cv2

        cv2.setNumThreads(0)
        planes, target, _ = self.draw(step)
        return torch.from_numpy(planes), torch.from_numpy(target)


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


def stamp_of(network, items, held: dict[str, list[Pair]], plan: Plan, teacher: Path | None, *rest) -> str:
    """Return what makes a training the same: start weights, pictures, cells, those that choose, teacher, plan and `rest`.

    Parameters
    ----------
    items : sequence of sequences of Prepared
        The training images of each kind.
    """
    chosen = chosen_by([pair for pairs in held.values() for pair in pairs], True)
    arrays = [*(item.arrays for group in items for item in group), *chosen]
    sizes, learnt_from = list(map(len, items)), sha256_file(teacher) if teacher else ""
    return f"starter {fingerprint(network, arrays, plan, sizes, list(held), learnt_from, *rest)}"


def check(given: argparse.Namespace) -> None:
    """Refuse, before anything is read or drawn, what is not there.

    Raises
    ------
    UserError
        The data, the weights to start from or to publish again, or the teacher.
    """
    lacking = [name for name in ("index.csv", "images", "labels") if not (given.data / name).exists()]
    if lacking:
        raise UserError(f"{given.data} has no {lacking[0]}", "give the packed dsb2018 folder as --data")
    if given.only_card:
        if given.base == "scratch":
            raise UserError("--only-card publishes weights again, and --base is scratch", "give them as --base")
        if "step" not in weights.card_for(given.base, unet.NAME).metrics:
            raise UserError(f"the card of {given.base} does not say its step", "give weights that this script wrote")
    if given.base != "scratch":
        load_network(given.base)
    if given.teacher:
        load_network(given.teacher)


def main() -> None:
    """Read, draw, train, write float16 weights and their card."""
    show_log()
    try:
        run(asked())
    except UserError as error:
        sys.exit(str(error))


def asked() -> argparse.Namespace:
    """Return the options that were given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, required=True, help="the packed dsb2018 folder (images/, labels/, index.csv)"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/starter"))
    parser.add_argument("--base", default="scratch", help="weights to start from")
    parser.add_argument(
        "--widths", type=int, nargs=4, default=WIDTHS, help="channels of the network; 16 32 64 128 is the light edition"
    )
    parser.add_argument(
        "--teacher", type=Path, help="weights of a wider network, whose maps are learnt beside the truth"
    )
    parser.add_argument("--steps", type=int, default=10000)
    parser.add_argument("--batch", type=int, default=32, help="crops of a step")
    parser.add_argument("--crop", type=int, default=224, help="their side in px")
    parser.add_argument("--drawn", type=int, default=400, help="drawn training fields of each kind")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--held", type=int, default=HELD, help="images of each kind that are scored along the way")
    parser.add_argument("--scores", type=int, default=4, help="how often kept-out images are scored along the way")
    parser.add_argument("--only-card", action="store_true", help="train no more: read, score and publish --base again")
    parser.add_argument("--workers", type=int, default=0, help="processes that draw crops; 0 = this one")
    return parser.parse_args()


def run(given: argparse.Namespace) -> None:
    """Do what was asked for; what is missing is said before it takes time."""
    check(given)
    real, kept, workers = dsb2018(given.data), given.out.parent / "drawn", max(1, given.workers)
    groups = {kind: [pair for out, pair in pairs if not out] for kind, pairs in real.items()}
    held = {kind: [pair for out, pair in pairs if out][: given.held] for kind, pairs in real.items()}
    held |= drawn(given.held, SEED + 1000, kept, workers)
    held = {kind: pairs for kind, pairs in held.items() if pairs}
    if given.only_card:
        step = weights.read_card(Path(given.base)).metrics["step"]
        publish(load_network(given.base)[0], given.out / "starter.safetensors", step, held, given.held)
        return
    groups |= drawn(given.drawn, SEED, kept, workers)
    cache = given.out.parent / "flows"
    items = [
        in_parallel(prepared, [(pair, cache) for pair in pairs], f"flows of {kind}", workers)
        for kind, pairs in groups.items()
    ]
    torch.backends.cudnn.benchmark = True
    network = load_start(given.base, SEED, given.widths)
    teacher = load_network(given.teacher)[0] if given.teacher else None
    plan = Plan(
        given.steps,
        eval_every=max(1, given.steps // given.scores),
        learning_rate=given.rate,
        weight_decay=1e-4,
        warmup_steps=200,
    )
    shares = [SHARES.get(kind, 1) for kind in groups]
    loss_at = Mixture(network, items, shares, given.batch, given.crop, teacher, given.workers)
    stamp = stamp_of(network, items, held, plan, given.teacher, given.batch, given.crop, shares)
    score = Score(network, held)
    history = fit(network, loss_at, score, plan, given.out, stamp, desc="starter")
    publish(network, given.out / "starter.safetensors", history.best_step, held, given.held)


def publish(network, path: Path, step: int, held: dict[str, list[Pair]], count: int) -> None:
    """Write the weights as float16 with their card: how they are read best, on images kept out, and what they score so."""
    each = {
        kind: np.mean(
            [
                score_maps(predict_maps(network, image, diameter_of([truth])), truth, FLOWS, CELLPROBS, (LEAST_PX,))
                for image, truth in pairs
            ],
            axis=0,
        )[..., 0]
        for kind, pairs in held.items()
    }
    mean = np.mean(list(each.values()), axis=0)
    flow, cellprob = np.unravel_index(mean.argmax(), mean.shape)
    read_with = {"flow_threshold": FLOWS[flow], "cellprob_threshold": CELLPROBS[cellprob], "min_area_px": LEAST_PX}
    tensors = {k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()}
    card = weights.read_card(
        weights.save_checkpoint(
            path,
            tensors,
            unet.NAME,
            config={**unet.DEFAULTS, "diameter_px": 30.0, **read_with, **network.config},
            metrics={
                "map_iou_validation": round(float(mean[flow, cellprob]), 4),
                "by_kind": {kind: round(float(scores[flow, cellprob]), 4) for kind, scores in each.items()},
                "convention": f"kaggle, mean of kinds, {count} images of each held out of training, each at its own diameter; "
                "they chose step and thresholds",
                "step": step,
            },
            licence="CC0-1.0 (DSB2018 stage 1, BBBC038) and drawn images",
        )
    )
    print(replace(card, sha256=card.sha256[:12]))


if __name__ == "__main__":
    main()
