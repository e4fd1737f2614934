"""Measure the quality flags: `python benchmarks/bench_quality.py [--fields N] [--sets NAME ...] [--sheets FOLDER]`.

Drawn frames with known defects, of one microscope (the demo's) and of a new random one per field: which share of each kind
is flagged, by its own name and at all. Then copies: which of a field's disguises are found, and how alike different fields
are at most. Then real sets from the data folder (CELLKIT_DATA): which images are flagged and why, and which show one field;
`--sheets` writes pictures of them to look at. Last the time per picture. One process.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np

from cellkit.cells.drawn.camera import expose_stack
from cellkit.cells.drawn.field import draw_field
from cellkit.cells.drawn.style import FieldStyle, random_style
from cellkit.config.sections import ChannelsConfig, ConvertConfig
from cellkit.microscope.duplicates import similar_pairs
from cellkit.microscope.flags import explain, flag_records, reasons
from cellkit.microscope.light import to_8bit
from cellkit.microscope.quality import measure

DEFECTS = ("", "out_of_focus", "saturated", "debris", "uneven_light", "empty")
WANTED = {"out_of_focus": "at least 95 %", "saturated": "at least 95 %", "": "at most 3 % flagged"}
LINES = (("HEK",), ("N2a",), ("HEK", "N2a"))
SETS = {
    "two_lines": {"source": "two_lines", "path": "two_lines", "classes": ("u2os", "nih3t3"), "nuclei": 0},
    "dsb2018": {"source": "dsb2018", "path": "dsb2018", "classes": ("nucleus",), "nuclei": 0},
    "dkfz": {
        "source": "labelme", "path": "dkfz", "classes": ("UndifferentiatedMSC", "Myofibroblast"),
        "nuclei": "blue", "cytoplasm": "red", "class_names": {"PartiallydifferentiatedMSC": None},
    },
    "sartorius": {"source": "folder", "path": "sartorius/train", "classes": ("cell",), "cytoplasm": 0},
    "hepg2_huh7": {"source": "folder", "path": "hepg2_huh7/images", "classes": ("cell",), "nuclei": 0},
}  # fmt: skip


# ---- drawn frames --------------------------------------------------------------------------------------------------
def frame(defect: str, style: FieldStyle, seed: int, planes: int = 1, light: int = 0) -> tuple[np.ndarray, float]:
    """Draw a frame and convert it as notebook 01 does; return it and the share of pixels at the camera's limit."""
    drawn = "" if defect == "uneven_light" else defect
    field = draw_field(LINES[seed % 3], style, (seed, 1), drawn)
    stack = expose_stack(field, style, planes, (seed, 2 + light)).max(axis=0)
    image, clipped = np.zeros((*stack.shape[1:], 3), np.uint8), 0.0
    for plane, colour in zip(stack, (2, 1), strict=True):
        image[..., colour], _, _, share = to_8bit(plane, (0.3, 99.8))
        clipped = max(clipped, share)
    return image, clipped


def style_of(kind: str, seed: int, defect: str, side_px: int) -> FieldStyle:
    rng = np.random.default_rng([seed, 5])
    style = FieldStyle(size_px=(side_px, side_px), density=rng.uniform(0.2, 0.9), photons=rng.uniform(60, 300))
    style = replace(style, blur_px=rng.uniform(0.9, 1.5))
    if kind == "random":
        style = random_style(rng, (side_px, side_px))
    return replace(style, illumination=rng.uniform(0.88, 0.97)) if defect == "uneven_light" else style


def rates(kind: str, fields: int, seed: int = 0, side_px: int = 256) -> dict[str, tuple[float, float, int]]:
    """Return, for each defect, the share flagged by its name, the share flagged at all, and how many frames."""
    defects = [defect for defect in DEFECTS for _ in range(fields * (2 if not defect else 1))]
    measured = []
    for number, defect in enumerate(defects):
        own = 100_000 * seed + number
        planes = 1 + 2 * (number % 4 == 0)
        measured.append(measure(*frame(defect, style_of(kind, own, defect, side_px), own, planes)))
    flags, _ = flag_records(measured)
    found = {}
    for defect in DEFECTS:
        mine = [flag for flag, one in zip(flags, defects, strict=True) if one == defect]
        found[defect] = (np.mean([defect in f.split(";") for f in mine]), np.mean([f != "" for f in mine]), len(mine))
    return found


def print_rates(fields: int, seeds: int, side_px: int) -> None:
    for kind in ("demo", "random"):
        runs = [rates(kind, fields, seed, side_px) for seed in range(seeds)]
        print(f"\n{kind} microscope, {side_px} px, {seeds} batches of {sum(n for *_, n in runs[0].values())} frames")
        for defect in DEFECTS:
            named, flagged = (np.mean([run[defect][k] for run in runs]) for k in (0, 1))
            count = sum(run[defect][2] for run in runs)
            told = "" if defect in ("", "empty") else f"named {100 * named:6.1f} %"
            wanted = f"   (wanted: {WANTED[defect]})" if defect in WANTED else ""
            print(f"    {defect or 'good':<14}{count:>5} frames  flagged {100 * flagged:6.1f} %  {told}{wanted}")


# ---- copies --------------------------------------------------------------------------------------------------------
def disguises(image: np.ndarray, rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    """Yield a picture in disguise, by the name of the disguise."""
    yield "half as bright", (image * 0.5).astype(np.uint8)
    yield "gamma 0.6", (255 * (image / 255.0) ** 0.6).astype(np.uint8)
    yield "gamma 1.6", (255 * (image / 255.0) ** 1.6).astype(np.uint8)
    yield "noise of 12 levels", np.clip(image + rng.normal(0, 12, image.shape), 0, 255).astype(np.uint8)
    yield "shifted by 4 px", image[4:, 4:]
    yield "shifted by 8 px", image[8:, 8:]
    yield "mirrored", image[:, ::-1]
    yield "turned by 90°", np.rot90(image)
    yield "turned, shifted, darker", (np.rot90(image, 2)[4:, 4:] * 0.7).astype(np.uint8)


def print_copies(pictures: list[np.ndarray], quality: list[dict], names: list[str]) -> list[tuple[int, int, str]]:
    begun = time.perf_counter()
    pairs = list(similar_pairs(quality, pictures.__getitem__, 0.0))
    took = time.perf_counter() - begun
    found = [pair for pair in pairs if pair[3] >= 0.75]
    rest = max((pair[3] for pair in pairs if pair[3] < 0.75), default=0.0)
    print(f"    copies: {len(found)} pair(s) in {took:.2f} s; the most alike of all others: {rest:.2f}")
    for i, j, how, likeness in found:
        print(f"      {names[i]} and {names[j]}: {how}, likeness {likeness:.2f}")
    rng, seen = np.random.default_rng(0), {}
    for k in rng.choice(len(pictures), min(30, len(pictures)), replace=False):
        if not quality[k]["empty"]:
            for name, other in disguises(pictures[k], rng):
                other = np.ascontiguousarray(other)
                pair = list(similar_pairs([quality[k], measure(other)], (pictures[k], other).__getitem__, 0.75))
                seen.setdefault(name, []).append(len(pair))
    print("    found in disguise: " + ", ".join(f"{name} {100 * np.mean(hits):.0f} %" for name, hits in seen.items()))
    return [pair[:3] for pair in found]


# ---- real sets -----------------------------------------------------------------------------------------------------
def load(name: str, root: Path) -> Iterator[tuple[str, np.ndarray, float | None]]:
    from cellkit.modules import load

    how = dict(SETS[name])
    path = root / how.pop("path")
    channels = ChannelsConfig(nuclei=how.pop("nuclei", None), cytoplasm=how.pop("cytoplasm", None))
    config = ConvertConfig(channels=channels, **how)
    for item in load("source", config.source).read(path, config):
        loaded = item.load()
        yield item.image_id, loaded.image, max((level.clipped_fraction for level in loaded.levels), default=None)


def print_set(name: str, root: Path, sheets: Path | None) -> None:
    names, pictures, clipped = map(list, zip(*load(name, root), strict=True))
    quality = [measure(image, share) for image, share in zip(pictures, clipped, strict=True)]
    flags, thresholds = flag_records(quality)
    flagged = [k for k, flag in enumerate(flags) if flag]
    print(f"\n{name}: {len(flagged)} of {len(names)} images flagged")
    for line in explain(thresholds, flags):
        print(f"    {line}")
    for k in flagged:
        print(f"      {names[k]}: {'; '.join(reasons(quality[k], thresholds, flags[k]))}")
    copies = print_copies(pictures, quality, names)
    if sheets is not None:
        shown = [(pictures[k], f"{names[k][:12]} {flags[k]}") for k in flagged]
        shown += [(pictures[k], f"{names[k][:12]} {how}") for i, j, how in copies for k in (i, j)]
        draw_sheet(shown, sheets / f"{name}.png")


def draw_sheet(shown: list[tuple[np.ndarray, str]], path: Path) -> None:
    from cellkit.show.style import new_figure, save_figure

    rows = max(1, -(-len(shown) // 6))
    figure = new_figure(15, 2.6 * rows + 0.3)
    axes = figure.subplots(rows, 6, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, (image, text) in zip(axes.flat, shown, strict=False):
        ax.imshow(image)
        ax.set_title(text, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_figure(figure, path, 80)


# ---- time ----------------------------------------------------------------------------------------------------------
def print_time(repeats: int = 40) -> None:
    print("\ntime of measure, two channels in use, median of single-threaded rounds")
    for side in (256, 512, 1024, 2048):
        image, clipped = frame("", replace(FieldStyle(), size_px=(side, side)), 3)
        times = []
        for _ in range(repeats):
            begun = time.thread_time()
            measure(image, clipped)
            times.append(1e3 * (time.thread_time() - begun))
        print(f"    {side:>5} x {side:<5} px {median(times):8.2f} ms  (best {min(times):.2f})")


def main() -> None:
    import cv2

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fields", type=int, default=20, help="frames of each defect in a batch")
    parser.add_argument("--seeds", type=int, default=3, help="batches")
    parser.add_argument("--side", type=int, default=256, help="height and width of a frame (px)")
    parser.add_argument("--sets", nargs="*", default=list(SETS), choices=list(SETS))
    parser.add_argument("--sheets", type=Path, help="folder for pictures of what is flagged")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    print_rates(arguments.fields, arguments.seeds, arguments.side)
    root = os.environ.get("CELLKIT_DATA")
    for name in arguments.sets if root else ():
        print_set(name, Path(root), arguments.sheets)
    if not root:
        print("\nno real sets: set CELLKIT_DATA to the data folder")
    print_time()


if __name__ == "__main__":
    main()
