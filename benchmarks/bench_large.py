"""An image larger than the memory through a model: `python benchmarks/bench_large.py [--side 4000] [--model threshold]`.

Writes a drawn OME-Zarr of that side (cells of 20 to 34 px that touch here and there, 16 bits, in chunks), lets `cellkit predict`
find, number and measure its cells window by window in a process of its own, and prints

- the most memory that the process tree held,
- seconds of the processor a megapixel, and of the same model on a whole crop,
- how many cells of random crops, each seen as one image in the light of the whole, are the same pixel by pixel in the result.

Stopped, it goes on where it was when it is started again: files lie in --folder.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import zarr

from cellkit.cells.instances import Instances
from cellkit.cells.windows import Window, taken, windows_of
from cellkit.fetch.find import find_weights
from cellkit.formats.zarr_writing import describe, multiscales, new_group
from cellkit.microscope.convert import Conversion
from cellkit.microscope.file_info import LARGEST_PLANE_PX
from cellkit.microscope.open import open_file
from cellkit.microscope.windows import large_picture
from cellkit.models import cellpose_unet, threshold
from cellkit.models.shared.flows import masks_of
from cellkit.models.shared.tiles import blend_tiles
from cellkit.models.threshold_steps import brighter, depth_of, parted, pieces_of, smoothed
from cellkit.scores.iou import overlaps

PITCH_PX, REACH_PX, SHAPES = 40, 24, 256  # from cell to cell; half of what a cell is drawn in; how many are drawn
CROP_PX, DIAMETER_PX = 2000, 28.0
MOST_BYTES = 4 * 2**30  # what is wanted


# ---- the image -----------------------------------------------------------------------------------------------------
def draw(path: Path, side: int) -> None:
    """Write an OME-Zarr of drawn cells, chunk by chunk; a cell is the same in every chunk that it reaches into."""
    rng = np.random.default_rng(0)
    count = side // PITCH_PX + 2
    y, x = np.mgrid[:count, :count] * PITCH_PX + rng.uniform(-9, 9, (2, count, count))
    which, there = rng.integers(SHAPES, size=(count, count)), rng.random((count, count)) < 0.8
    dy, dx = np.mgrid[-REACH_PX : REACH_PX + 1, -REACH_PX : REACH_PX + 1]
    cells = []
    for _ in range(SHAPES):
        turn, long, short, light = (
            rng.uniform(0, np.pi),
            rng.uniform(12, 17),
            rng.uniform(10, 12),
            rng.uniform(900, 3500),
        )
        a, b = dy * np.cos(turn) + dx * np.sin(turn), dx * np.cos(turn) - dy * np.sin(turn)
        cells.append((light / (1 + np.exp(2 * (np.hypot(a / long, b / short) - 1) * short))).astype(np.uint16))
    noise = rng.normal(300, 40, (1024, 1024)).clip(0).astype(np.uint16)
    group = new_group(path, "0.5")
    array = group.create_array("0", shape=(side, side), chunks=(1024, 1024), dtype=np.uint16)
    for window in windows_of((side, side), 1024):
        values = np.zeros((1024 + 2 * REACH_PX,) * 2, np.uint16)
        near = window.grown(REACH_PX, (side + PITCH_PX,) * 2)
        rows, columns = (
            range(a // PITCH_PX - 1, b // PITCH_PX + 2) for a, b in ((near.top, near.bottom), (near.left, near.right))
        )
        for i in rows:
            for j in columns:
                if not (0 <= i < count and 0 <= j < count and there[i, j]):
                    continue
                top, left = round(y[i, j]) - window.top, round(x[i, j]) - window.left
                if -REACH_PX <= top < 1024 + REACH_PX and -REACH_PX <= left < 1024 + REACH_PX:
                    part = values[max(top, 0) : top + 2 * REACH_PX + 1, max(left, 0) : left + 2 * REACH_PX + 1]
                    np.maximum(
                        part,
                        cells[which[i, j]][max(-top, 0) :, max(-left, 0) :][: part.shape[0], : part.shape[1]],
                        out=part,
                    )
        height, width = window.shape
        array[window.slices] = (
            values[REACH_PX : REACH_PX + height, REACH_PX : REACH_PX + width] + noise[:height, :width]
        )
    about = multiscales("yx", [0.5, 0.5], 0.5, (side, side), [(side, side)], "0.5", "drawn")
    describe(group, {"multiscales": [about], "omero": {"channels": [{"label": "DAPI"}]}}, "0.5")


# ---- the run -------------------------------------------------------------------------------------------------------
def run(command: list[str], folder: Path) -> dict[str, float]:
    """Run a command; return the most memory of its process tree (bytes) and its seconds of the processor."""
    process, peak, cpu = psutil.Popen(command), 0, 0.0
    begun = time.monotonic()
    while process.poll() is None:
        try:
            tree = [process, *process.children(recursive=True)]
            peak = max(peak, sum(one.memory_info().rss for one in tree))
            cpu = max(cpu, sum(sum(one.cpu_times()[:2]) for one in tree))
        except psutil.NoSuchProcess:
            continue
        for kept in folder.glob("*.parts/*.large/threshold.json"):
            with suppress(FileNotFoundError):  # the prediction has ended meanwhile
                shutil.copy(kept, folder / "threshold.json")
        time.sleep(0.2)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return {"peak_bytes": peak, "cpu_s": cpu, "wall_s": time.monotonic() - begun}


# ---- the same, of crops that are seen whole ------------------------------------------------------------------------
def whole_crop(model: str, image, window: Window, light, folder: Path) -> Instances:
    """Return the cells of a crop, found in one piece, with what the whole image tells: its limit, or its contrast."""
    pixels = taken(image, window)
    if model == "threshold":
        limit = json.loads((folder / "threshold.json").read_text())["limit"]
        grey = smoothed(pixels)
        cells = brighter(grey, limit)
        found = parted(grey, pieces_of(cells), depth_of(cells), limit, DIAMETER_PX)
        return found[found.areas_px >= threshold.DEFAULTS["min_area_px"]]
    from cellkit.models.shared.whole_light import contrast_of
    from cellkit.models.unet_maps import FRAME_PX, OVERLAP_PX, TILE_PX, forward
    from cellkit.models.unet_network import load_network

    network, card = load_network(find_weights(model), "float32")
    used = {
        **cellpose_unet.DEFAULTS,
        **{k: v for k, v in card.items() if k in cellpose_unet.DEFAULTS and v is not None},
    }
    low, high = contrast_of((light.values, light.counts), used["normalise"])
    planes = np.zeros((2, *window.shape), np.float32)
    planes[1] = (pixels[..., 2] - np.float32(low)) / np.float32(high - low)
    framed = np.pad(planes, ((0, 0), (FRAME_PX, FRAME_PX), (FRAME_PX, FRAME_PX)))
    maps = blend_tiles(lambda tile: forward(network, tile), framed, TILE_PX, OVERLAP_PX)[
        :, FRAME_PX:-FRAME_PX, FRAME_PX:-FRAME_PX
    ]
    how = (used["flow_threshold"], used["cellprob_threshold"], used["min_area_px"])
    return masks_of(maps, window.shape, *how)


def compared(found: Instances, labels: np.ndarray) -> tuple[int, int, int]:
    """Return how many cells of a crop, away from its border, there are; how many are the same; how many at IoU 0.9."""
    x, y, width, height = found.boxes_xywh.T
    inner = (x > 64) & (y > 64) & (x + width < labels.shape[1] - 64) & (y + height < labels.shape[0] - 64)
    pairs = overlaps(found[inner], Instances.from_labels(labels))
    best = np.zeros(int(inner.sum()))
    np.maximum.at(best, pairs.truth, pairs.iou)
    return len(best), int((best == 1).sum()), int((best >= 0.9).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=4000, metavar="PX", help="of the image (default 4000)")
    parser.add_argument("--model", default="threshold", help="threshold, starter or starter_light (default threshold)")
    parser.add_argument("--window-px", type=int, default=2048, metavar="PX", help="of the windows (default 2048)")
    parser.add_argument("--crops", type=int, default=3, metavar="N", help="crops that are compared (default 3)")
    parser.add_argument("--folder", type=Path, default=Path("runs/large"), help="where files go")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    path, out = given.folder / f"drawn_{given.side}.ome.zarr", given.folder / f"{given.model}_{given.side}"
    if not (path / "0" / "zarr.json").is_file() or not (given.folder / f"drawn_{given.side}.done").is_file():
        draw(path, given.side)
        (given.folder / f"drawn_{given.side}.done").touch()
    out.mkdir(exist_ok=True)
    megapixels = given.side**2 / 1e6
    if not (out / "spent.json").is_file():
        places = ["-o", out / "cells.json", "--labels", out / "labels", "--cells", out / "cells.csv"]
        how = ["--nuclei", 0, "--window-px", given.window_px]
        command = list(map(str, [sys.executable, "-m", "cellkit", "predict", given.model, path, *places, *how]))
        more = {"threshold": ["--diameter", str(DIAMETER_PX)]}.get(
            given.model, ["--diameter", "30", "--set", "channels=nuclei", "precision=float32"]
        )
        command += more  # at 30 px the image is not resized for the network, as the crop is not
        (out / "spent.json").write_text(json.dumps(run(command, out)))
    spent = json.loads((out / "spent.json").read_text())
    seconds = spent["cpu_s"]
    print(f"{given.model}, {given.side} x {given.side} px in windows of {given.window_px} px")
    print(
        f"memory {spent['peak_bytes'] / 2**30:.2f} GiB, {seconds:.0f} s of the processor, {seconds / megapixels:.2f} s/Mpx"
    )
    import tifffile

    with (
        open_file(path, most_px=LARGEST_PLANE_PX) as opened,
        tifffile.TiffFile(out / "labels" / f"drawn_{given.side}.tif") as file,
    ):
        picture = large_picture(opened, 0, 0, Conversion({"nuclei": 0}))
        labels = zarr.open_array(file.aszarr(level=0), mode="r")
        rng, total, seconds = np.random.default_rng(1), np.zeros(3, int), 0.0
        for _ in range(given.crops):
            side = min(CROP_PX, given.side)
            top, left = rng.integers(0, given.side - side + 1, 2).tolist()
            window = Window(top, left, top + side, left + side)
            begun = time.process_time()
            found = whole_crop(given.model, picture.image, window, picture.light["blue"], out)
            seconds += time.process_time() - begun
            total += compared(found, labels[window.slices])
    untiled = seconds / (given.crops * side**2 / 1e6)
    print(
        f"crops of {side} px in one piece: {untiled:.2f} s/Mpx; "
        f"of {total[0]} cells {total[1]} are the same, {total[2]} at IoU 0.9"
    )
    if spent["peak_bytes"] > MOST_BYTES or total[2] < total[0]:
        sys.exit("FAILED: more than 4 GiB, or a cell that is not found in the result")


if __name__ == "__main__":
    main()
