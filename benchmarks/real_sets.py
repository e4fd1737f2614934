"""The real sets that benchmarks train and score on, and one file of each, to carry to another machine.

    python benchmarks/real_sets.py --data FOLDER --out packed          # packed/two_lines.zip, dkfz.zip, ...

Each set is converted as notebook 01 does, flagged images and copies are left out, and the rest is parted by group: images to
train on ("train") and images to score ("test"). Of DSB2018 only those take part that the starter weights have not learned
from. A packed set is a zip of pictures and one COCO file; `--most` and `--tested`
bound it; images that are scored are cut to `--side` px, those to train on are whole.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import os
import shutil
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from cellkit.cells.dataset import CellDataset, predict_all
from cellkit.config.reading import load_config
from cellkit.config.sections import Config
from cellkit.evaluate.quarters import Box, cut_out
from cellkit.fetch.find import find_weights
from cellkit.files import atomic_path, read_json, sha256_file
from cellkit.formats.coco import write_dataset
from cellkit.formats.coco_reading import read_coco
from cellkit.labelling.rules import random_number
from cellkit.log import LOG, show_log

ROOT = Path(__file__).resolve().parents[1]
FLUORESCENCE = ["fluor_small", "fluor_large"]
SETS: dict[str, tuple[str, dict[str, Any]]] = {  # name -> its configuration, and what differs from that
    "two_lines": ("two_lines", {}),
    "dkfz": ("dkfz", {}),
    "dsb2018": ("dsb2018", {"convert.modalities": FLUORESCENCE}),
    "dsb2018_small": ("dsb2018", {"convert.modalities": ["fluor_small"]}),
    "dsb2018_large": ("dsb2018", {"convert.modalities": ["fluor_large"]}),
    "dsb2018_purple": ("dsb2018", {"convert.modalities": ["purple_on_purple"]}),
    "dsb2018_all": ("dsb2018", {"convert.modalities": None}),
    "sartorius": ("sartorius", {"convert.split_by": "image"}),  # its table need not name plates
}
CHOSE = "chose a step of the base"
LEAST_NUCLEI = 3  # of a picture that starter weights are made with
HELD_OUT = 0.3  # share of the images (groups) that are scored
CELLS = "cells.json"
COLOURS = {"both": (1, 2), "nuclei": (2,), "cytoplasm": (1,)}  # that networks are shown


# ---- what a base has seen ------------------------------------------------------------------------------------------
def unseen_by(base: str, data: Path) -> tuple[Callable[[str], bool], set[str], str]:
    """Return which DSB2018 pictures have taught nothing to a base, those of them that chose its step, and this in words.

    Parameters
    ----------
    base : str
        A name of weights, or a path.
    data : Path
        The data folder.
    """
    path = Path(base) if Path(base).is_file() else None if base == "scratch" else find_weights(base)
    card = path.with_suffix(".json") if path is not None else None
    if card is not None and card.is_file() and "DSB2018" in read_json(card).get("licence", ""):
        sys.path.append(str(ROOT / "scripts"))
        from train_starter import HELD, kept_out

        kept = [
            row for row in index_of(data / "dsb2018") if kept_out(row["id"]) and int(row["n_nuclei"]) >= LEAST_NUCLEI
        ]
        kinds = sorted({row["modality"] for row in kept})
        chose = {row["id"] for kind in kinds for row in [row for row in kept if row["modality"] == kind][:HELD]}
        words = (
            "the start weights have learned from other pictures of DSB2018 and never from these, of which some chose their "
            "step (to train on here; none of them is scored)"
        )
        return kept_out, chose, words
    return lambda name: True, set(), f"what {base} has learned from is not known here"


def index_of(folder: Path) -> list[dict[str, str]]:
    """Return the rows of DSB2018's index.csv, by id."""
    with open(folder / "index.csv", newline="", encoding="utf-8") as file:
        return sorted(csv.DictReader(file), key=lambda row: row["id"])


# ---- the sets ------------------------------------------------------------------------------------------------------
def config_of(name: str, data: Path, overrides: dict[str, Any] | None = None) -> Config:
    """Return the configuration of a set: all its images, dealt into splits by ourselves."""
    file, changes = SETS[name]
    fixed = {"data": str(Path(data).resolve()), "convert.max_images": None, "convert.published_split": False}
    return load_config(ROOT / "configs" / f"{file}.yaml", fixed | changes | (overrides or {}))


def load_set(name: str, config: Config, data: Path, work: Path, base: str = "starter") -> tuple[CellDataset, str]:
    """Return the labelled images of a set that a base has not learned from, and that in words; converted once.

    Images that are flagged, copies of others, and those without a cell are left out. All records are of the split "train";
    DSB2018 pictures that chose a step of the base's have `CHOSE` for a group.
    """
    from cellkit.microscope.flags import check_quality
    from cellkit.sources.ingest import convert_images

    convert = config.convert.model_copy(update={"mixed_images": 0})
    told = json.dumps(convert.fingerprint(), sort_keys=True, default=str)
    folder = work / f"{name}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"
    if not (folder / CELLS).is_file():
        made = convert_images(convert, Path(data) / convert.path, folder)
        records = [replace(r, split="train") for r in made.images.records]
        records = check_quality(made._replace(images=made.images.with_records(records)), folder, convert).records
        used = made.images.with_records(records).with_truth()
        used = used.subset([not r.flags and r.split != "" for r in used.records])
        write_dataset(folder / CELLS, used.subset([len(cells) > 0 for cells in used.instances]))
    images = read_coco(folder / CELLS, folder)
    if SETS[name][0] != "dsb2018":
        return images, "the starter weights have never seen this set"
    is_unseen, chose, words = unseen_by(base, Path(data))
    images = images.subset([is_unseen(original_id(r.image_id)) for r in images.records])
    return images.with_records(
        [replace(r, group=CHOSE if original_id(r.image_id) in chose else r.group) for r in images.records]
    ), words


def original_id(image_id: str) -> str:
    """Return the id that index.csv has."""
    return Path(image_id).stem


def parted(images: CellDataset, pool: int, tested: int) -> tuple[CellDataset, CellDataset]:
    """Return the images whose labels may teach, and those that are scored: by group, and at most so many, all at random.

    Images that chose a step of the base's are never scored; where these are half of all images, all others are.
    """
    chose = [record.group == CHOSE for record in images.records]
    share = 1.0 if any(chose) and 2 * sum(chose) >= len(chose) else HELD_OUT
    scored = [
        not one and random_number(record.group or record.image_id, 1) < share
        for one, record in zip(chose, images.records, strict=True)
    ]
    parts = []
    for wanted, most in ((False, pool), (True, tested)):
        part = images.subset(np.array([one == wanted for one in scored], bool))
        names = set(by_chance([r.image_id for r in part.records], most, 2))
        parts.append(part.subset(np.array([r.image_id in names for r in part.records], bool)))
    return parts[0], parts[1]


def by_chance(names: Sequence[str], most: int, seed: int) -> list[str]:
    """Return at most `most` names, chosen at random, in random order."""
    return sorted(names, key=lambda name: (random_number(name, seed), name))[:most]


def order_of(images: int, draw: int) -> np.ndarray:
    """Return a random order of the images: no two draws begin with the same one, while there are enough.

    Examples
    --------
    >>> [int(order_of(40, draw)[0]) for draw in range(5)]
    [33, 0, 24, 5, 32]
    """
    first: set[int] = set()
    for k in range(draw + 1):
        order = np.random.default_rng([k, 1]).permutation(images)
        turns = (n for n in range(images) if int(order[n]) not in first)
        order = np.roll(order, -next(turns, 0))
        first.add(int(order[0]))
    return order


def images_of(
    name: str, data: Path, work: Path, pool: int, tested: int, packed: Path | None = None, base: str = "starter",
    overrides: dict[str, Any] | None = None,
) -> tuple[CellDataset, CellDataset, Config, str]:  # fmt: skip
    """Return the images to train on, those to score, the configuration, and what the base has seen, in words.

    Parameters
    ----------
    packed : Path, optional
        A packed set, read instead of the data folder; or the folder in which it lies.
    """
    config = config_of(name, data, overrides)
    if packed is not None:
        images, words, made_for = unpack(packed / f"{name}.zip" if packed.is_dir() else packed, work / f"{name}-packed")
        if made_for != base_stamp(base):
            sys.exit(f"{packed} was packed for other start weights than {base}: pack it again with --base {base}")
        parts = [images.select(split) for split in ("train", "test")]
    else:
        images, words = load_set(name, config, data, work, base)
        parts = list(parted(images, pool, tested))
    sizes = zip(parts, (pool, tested), strict=True)
    keep = [set(by_chance([r.image_id for r in part.records], most, 2)) for part, most in sizes]
    train, test = (
        part.subset([r.image_id in names for r in part.records]) for part, names in zip(parts, keep, strict=True)
    )
    train = train.with_records([replace(r, split="train", group=r.group.removeprefix(CHOSE)) for r in train.records])
    return train, test.with_records([replace(r, split="test") for r in test.records]), config, words


# ---- packed --------------------------------------------------------------------------------------------------------
def base_stamp(base: str) -> str:
    """Return what names the start weights that a set was packed for."""
    return base if base == "scratch" else sha256_file(Path(base) if Path(base).is_file() else find_weights(base))[:12]


def pack(
    train: CellDataset, test: CellDataset, shown: str, words: str, to: Path, base: str, side_px: int = 0
) -> Path:  # fmt: skip
    """Write both parts as one zip: a picture for each image, cells.json, about.json.

    Parameters
    ----------
    side_px : int
        Images that are scored are cut to so many px around their middle; 0 = they are whole.
    shown : {"both", "nuclei", "cytoplasm"}
        What networks are shown of this set; the other colours are left out.
    """
    from PIL import Image

    records, instances = [], []
    with atomic_path(to) as temporary, zipfile.ZipFile(temporary, "w") as file:
        for split, part in (("train", train), ("test", test)):
            for k, record in enumerate(part.records):
                cells, shape = part.instances[k], (record.height_px, record.width_px)
                box = middle_of(shape, side_px if side_px and split == "test" else max(shape))
                image = part.image(k)[box.window] * np.isin(range(3), COLOURS[shown]).astype(np.uint8)
                path, packed = f"images/{len(records):04d}.png", io.BytesIO()
                Image.fromarray(image).save(packed, "WEBP", lossless=True)  # half the size of a PNG
                file.writestr(f"{path}.webp", packed.getvalue())
                shape = {"height_px": image.shape[0], "width_px": image.shape[1]}
                records.append(replace(record, path=path, split=split, **shape))
                instances.append(cells if cells.shape == image.shape[:2] else cut_out(cells, box))
        both = CellDataset(records, instances, train.classes, ids=list(range(1, len(records) + 1)))
        cells = write_dataset(Path(f"{to}.{CELLS}"), both)
        file.write(cells, CELLS, zipfile.ZIP_DEFLATED)
        cells.unlink()
        file.writestr("about.json", json.dumps({"words": words, "base": base_stamp(base)}))
    return to


def middle_of(shape: tuple[int, int], side_px: int) -> Box:
    """Return the middle of an image, at most so many px high and wide."""
    top, left = (max(0, size - side_px) // 2 for size in shape)
    return Box(top, min(shape[0], top + side_px), left, min(shape[1], left + side_px))


def unpack(path: Path, folder: Path) -> tuple[CellDataset, str, str]:
    """Return the images of a packed set, unpacked once, what its base has seen, in words, and which base that is."""
    from PIL import Image

    stamp = folder / sha256_file(path)[:16]
    if not stamp.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "images").mkdir(parents=True)
        with zipfile.ZipFile(path) as file:
            for name in file.namelist():
                if name.endswith(".webp"):
                    Image.open(io.BytesIO(file.read(name))).save(folder / name.removesuffix(".webp"), compress_level=1)
                else:
                    file.extract(name, folder)
        stamp.touch()
    about = read_json(folder / "about.json")
    return read_coco(folder / CELLS, folder), about["words"], about["base"]


def scores_of(backend: ModuleType, checkpoint: Path, test: CellDataset) -> dict[str, list[float]]:
    """Return the scores of each image: "map_iou", MAP IoU (kaggle), and "ap50", TP / (TP + FP + FN) at IoU 0.5."""
    from cellkit.scores.iou import overlaps
    from cellkit.scores.kaggle import kaggle

    found = predict_all(backend.load(checkpoint), test, "score")
    each = [kaggle([overlaps(t, f)], bootstrap=0) for t, f in zip(test.instances, found, strict=True)]
    return {"map_iou": [one["score"] for one in each], "ap50": [one["by_threshold"]["0.50"] for one in each]}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add where images come from."""
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("CELLKIT_DATA", str(ROOT.parent / "shared" / "data"))
    )
    parser.add_argument("--packed", type=Path, help="a packed set, or the folder of them; read instead of --data")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--out", type=Path, default=Path("packed"))
    parser.add_argument("--sets", nargs="+", choices=tuple(SETS), default=list(SETS))
    parser.add_argument("--most", type=int, default=40, help="most images of a set to train on (default 40)")
    parser.add_argument("--tested", type=int, default=16, help="most images of a set that are scored (default 16)")
    parser.add_argument("--base", default="starter", help="weights that trainings will start from: a name or a path")
    parser.add_argument(
        "--side", type=int, default=800, help="px to which scored images are cut; 0 = none (default 800)"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/real_sets"), help="folder of converted images")
    given = parser.parse_args()
    show_log()
    for name in given.sets:
        sizes = (given.most, given.tested)
        train, test, config, words = images_of(name, Path(given.data), given.work, *sizes, base=given.base)
        given.out.mkdir(parents=True, exist_ok=True)
        path = pack(train, test, config.finetune.channels, words, given.out / f"{name}.zip", given.base, given.side)
        LOG.info(f"{path}: {train} | {test} | {path.stat().st_size / 1e6:.1f} MB | {words}")


if __name__ == "__main__":
    main()
