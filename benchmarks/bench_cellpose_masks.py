"""Masks of the same weights, ours and Cellpose 3's, by score and time: `python benchmarks/bench_cellpose_masks.py`.

Labelled images of three sets go through our `segment_image` and through `CellposeModel.eval` (Cellpose 3.1.1.3, apart) with
the same weights, the same thresholds and the same diameter, that of each image's labels. Two rows between them say where a
difference comes from: our maps with Cellpose's masks, and Cellpose's maps (at the image's own scale) with ours. MAP IoU is
kaggle's, mean of images. CPU seconds are those of an image from its pixels to its masks, float32, threads as OMP_NUM_THREADS
says, the mean of all images of a set but the first, in one run; `--mkldnn` also runs Cellpose as it is by default on a
processor, where it translates its network anew for every batch. With `--keep` what Cellpose found stays in a folder and is
not computed again; the times of another run are not shown.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import cellpose3
import numpy as np

from cellkit.cells.dataset import evenly_spaced
from cellkit.cells.instances import Instances
from cellkit.config.sections import ConvertConfig
from cellkit.fetch.find import find_weights
from cellkit.files import sha256_file
from cellkit.models.shared.diameter import diameter_of
from cellkit.models.shared.flows import masks_of
from cellkit.models.unet_maps import predict_maps
from cellkit.models.unet_network import load_network
from cellkit.scores.iou import overlaps
from cellkit.scores.kaggle import kaggle
from cellkit.sources.ingest import list_images

SETS = MappingProxyType({  # name: (images of each cell type, the section `convert`)
    "two_lines": (6, {"source": "two_lines", "channels": {"nuclei": 0}, "classes": ("u2os", "nih3t3"), "mixed_images": 0}),
    "dkfz": (8, {
        "source": "labelme", "channels": {"nuclei": "blue", "cytoplasm": "red"},
        "classes": ("UndifferentiatedMSC", "Myofibroblast"), "class_names": {"PartiallydifferentiatedMSC": None},
    }),
    "dsb2018": (20, {
        "source": "dsb2018", "channels": {"nuclei": "red"}, "classes": ("nucleus",), "modalities": ("fluor_small", "fluor_large"),
    }),
})  # fmt: skip
CELLPROB, LEAST_PX = 0.0, 15
Pairs = list[tuple[np.ndarray, Instances]]


def load(root: Path, count: int, told: dict) -> Pairs:
    """Return images that show nuclei alone, (H, W, 3) uint8, and their truth: `count` of each cell type, evenly spaced."""
    items = list_images(ConvertConfig(**told), root)
    types = sorted({item.cell_type for item in items})
    chosen = []
    for cell_type in types:
        own = [item for item in items if item.cell_type == cell_type]
        chosen += [own[k] for k in evenly_spaced(len(own), count)]
    made = [item.load() for item in chosen]
    return [(cellpose3.shown(one.image, "nuclei"), one.instances) for one in made if len(one.instances)]


def row(
    name: str, how: str, truths: Sequence[Instances], founds: Sequence[Instances], cpu_s: Sequence[float] = ()
) -> str:
    """Return a row of the table: images, labelled and found cells, MAP IoU with its interval, hits at 0.5 and 0.75, time."""
    told = kaggle([overlaps(truth, found) for truth, found in zip(truths, founds, strict=True)])
    low, high = told["interval"]
    at = " | ".join(f"{told['by_threshold'][key]:.3f}" for key in ("0.50", "0.75"))
    cells = f"{len(truths)} | {sum(map(len, truths))} | {sum(map(len, founds))}"
    took = f"{np.mean(cpu_s[1:]):.3f}" if len(cpu_s) > 1 else ""
    return f"| {name} | {how} | {cells} | {told['score']:.3f} [{low:.3f}, {high:.3f}] | {at} | {took} |"


def of_cellpose(
    weights: Path,
    images: Sequence[np.ndarray],
    diameters: Sequence[float],
    flow: float,
    kept: Path | None,
    mkldnn: bool = False,
) -> list[cellpose3.Found]:
    """Return what Cellpose finds, from the file that holds it where there is one, then without times."""
    if kept is not None and kept.is_file():
        with np.load(kept) as stored:
            names = [name for name in cellpose3.Found._fields if name != "cpu_s"]
            every = [{name: stored[f"{name}_{k}"] for name in names} for k in range(len(images))]
            return [cellpose3.Found(**one, cpu_s=np.zeros(0)) for one in every]
    options = {"flow_threshold": flow, "cellprob_threshold": CELLPROB, "min_size": LEAST_PX}
    found = cellpose3.evaluate(weights, images, diameters, maps=True, mkldnn=mkldnn, **options)
    if kept is not None:
        np.savez(kept, **{f"{key}_{k}": value for k, one in enumerate(found) for key, value in one._asdict().items()})
    return found


def ours(
    network: Any, image: np.ndarray, diameter_px: float, options: dict[str, float]
) -> tuple[np.ndarray, Instances, float]:
    """Return the maps of an image, its cells, and the CPU seconds that both took."""
    began = time.process_time()
    maps = predict_maps(network, image, diameter_px, "nuclei")
    found = masks_of(maps, image.shape[:2], *options.values())
    return maps, found, time.process_time() - began


def compare(
    name: str, pairs: Pairs, flow: float, weights: Path, networks: dict[str, Any], kept: Path | None, mkldnn: bool
) -> None:
    """Print the rows of one set; the first network is the one that Cellpose runs too."""
    images, truths = [image for image, _ in pairs], [truth for _, truth in pairs]
    shapes, diameters = [image.shape[:2] for image in images], [diameter_of([truth]) for truth in truths]
    options = {"flow_threshold": flow, "cellprob_threshold": CELLPROB, "min_size": LEAST_PX}
    every = {}
    for how, network in networks.items():
        made = every[how] = [ours(network, image, px, options) for image, px in zip(images, diameters, strict=True)]
        print(row(name, how, truths, [found for _, found, _ in made], [took for *_, took in made]), flush=True)
    made = every["ours"]
    theirs = of_cellpose(weights, images, diameters, flow, kept)
    evals = {"Cellpose": theirs}
    if mkldnn:
        evals["Cellpose, mkldnn"] = of_cellpose(weights, images, diameters, flow, None, mkldnn=True)
    for how, told in evals.items():
        found = [Instances.from_labels(one.labels) for one in told]
        took = [float(one.cpu_s[-1]) for one in told if len(one.cpu_s)]
        print(row(name, how, truths, found, took), flush=True)
    whole = [np.concatenate([one.flows, one.logit[None]]) for one in theirs]
    rows = {
        "our maps, Cellpose's masks": [
            Instances.from_labels(labels)
            for labels in cellpose3.masks_of([maps for maps, *_ in made], shapes, **options)
        ],
        "Cellpose's maps, our masks": [
            masks_of(one, shape, *options.values()) for one, shape in zip(whole, shapes, strict=True)
        ],
    }
    for how, founds in rows.items():
        print(row(name, how, truths, founds), flush=True)


def main() -> None:
    """Print the table; say what is not here."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("CELLKIT_DATA", "../shared/data")))
    parser.add_argument(
        "--weights", default="starter", help="of cellpose_unet: starter, a name of the registry, a path"
    )
    parser.add_argument(
        "--also",
        nargs="*",
        default=["starter_light"],
        metavar="WEIGHTS",
        help="run by ours alone (default starter_light)",
    )
    parser.add_argument("--flow-threshold", type=float, default=0.4, help="0 = no check")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--keep", type=Path, help="folder for what Cellpose found")
    parser.add_argument("--mkldnn", action="store_true", help="also run Cellpose as it is by default on a processor")
    given = parser.parse_args()
    if lacks := cellpose3.missing():
        print(f"left out: {lacks}")
        return
    network, _ = load_network(find_weights(given.weights), "float32")
    others = {f"ours, {name}": load_network(find_weights(name), "float32")[0] for name in given.also}
    networks = {"ours": network} | others
    folder = given.keep or Path(cellpose3.FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    weights = cellpose3.save_weights(network, folder / "weights")
    print(
        "| set | masks | images | labelled | found | MAP IoU | at 0.50 | at 0.75 | CPU s an image |\n|---|---|"
        + "---:|" * 7
    )
    for name in given.sets:
        count, told = SETS[name]
        if not (given.data / name).is_dir():
            print(f"| {name} | not here | | | | | | |")
            continue
        pairs = load(given.data / name, count, told)
        kept = given.keep and given.keep / f"{name}_{sha256_file(weights)[:8]}_{given.flow_threshold:g}.npz"
        compare(name, pairs, given.flow_threshold, weights, networks, kept, given.mkldnn)


if __name__ == "__main__":
    main()
