"""Cellpose-SAM against `CellposeModel.eval`, full size (ViT-L), random weights: `python benchmarks/bench_sam.py [--out FILE]`.

On a processor: one square of 256 px in float32, processor seconds and the most memory held, each in a process of its own. On a
GPU, in bfloat16, in float32 with factors rounded to 10 bits (tf32, as the package computes) and in float32 as it is, with 1, 8
and 32 squares at once: squares a second of the network alone, images a second from picture to maps and from picture to masks,
and the memory of the GPU. So that there are masks to find, the maps of both networks are taken from the picture, whose colours
are flows and cells, once the network has been computed. That both find the same maps is asserted on the processor; tables are
markdown.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import sam_training
import torch

from cellkit.log import LOG
from cellkit.machine import arithmetic, peak_bytes
from cellkit.models import weights

BATCHES = (1, 8, 32)
WANTED = 2.0  # images a second of ours over the package's, on a GPU
SQUARE_PX = 256
GB = 1e9
SAME = 1e-4  # largest difference of maps in float32


# ---- pictures and weights --------------------------------------------------------------------------------------------
def pictures(count: int, side_px: int) -> list[np.ndarray]:
    """Return pictures (side_px, side_px, 3) uint8 whose colours are flow y, flow x and cells of about 30 px."""
    from cellkit.cells.drawn.field import draw_field
    from cellkit.cells.drawn.style import FieldStyle
    from cellkit.models.shared.flows import target_of

    style = FieldStyle(size_px=(side_px, side_px), diameter_px=30.0)
    drawn = []
    for seed in range(min(count, 4)):
        y, x, inside = target_of(draw_field(("HEK", "N2a"), style, seed).labels.astype(np.int32))
        planes = 127.5 + 25.5 * y * inside, 127.5 + 25.5 * x * inside, 255 * inside
        drawn.append(np.stack(planes, axis=-1).round().astype(np.uint8))
    return [drawn[k % len(drawn)] for k in range(count)]


def cells_shown(shown: torch.Tensor) -> torch.Tensor:
    """Return the maps that pictures (B, 3, H, W) hold: each colour is shown from 0 to 1."""
    flows, cells = 10 * (shown[:, :2] - 0.5), 12 * (shown[:, 2:3] - 0.5)
    return torch.cat([flows, cells], dim=1)


def write_weights(folder: Path) -> tuple[Path, Path]:
    """Write one network with random weights twice: as ours, and as the cellpose package's."""
    from cellkit.models.sam_network import BACKEND, load_start

    tensors = {name: value.cpu() for name, value in load_start("scratch", precision="float32").state_dict().items()}
    torch.save(tensors, folder / "cpsam_random")
    return weights.save_checkpoint(folder / "ours.safetensors", tensors, BACKEND), folder / "cpsam_random"


def load_theirs(path: Path, precision: str) -> Any:
    from cellpose.models import CellposeModel

    gpu, half = torch.cuda.is_available(), precision == "bfloat16"
    return CellposeModel(gpu=gpu, pretrained_model=str(path), use_bfloat16=half)


def load_ours(path: Path, precision: str) -> Any:
    from cellkit.models.sam_network import applied_only, load_network

    return applied_only(load_network(path, "bfloat16" if precision == "bfloat16" else "float32")[0])


@contextmanager
def showing_cells(network: Any) -> Iterator[None]:
    """Let a network, once it has computed its maps, answer with those that the picture holds."""
    computed = network.forward

    def forward(shown: torch.Tensor) -> Any:
        found = computed(shown)
        maps, style = found if isinstance(found, tuple) else (found, None)
        maps = torch.where(maps.isnan(), maps, cells_shown(shown).to(maps.dtype))
        return (maps, style) if style is not None else maps

    network.forward = forward
    try:
        yield
    finally:
        del network.forward


# ---- time and memory -------------------------------------------------------------------------------------------------
def seconds_of(call: Callable[[], Any]) -> float:
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    begun = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - begun


def on_processor(who: str, path: Path, threads: int) -> dict[str, float]:
    """Return what a process of its own measures: seconds for one square of 256 px, and the most memory held (GB)."""
    command = [sys.executable, __file__, "--one", who, str(path), "--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def measure_one(who: str, path: Path, threads: int) -> dict[str, float]:
    """Measure one square in this process."""
    torch.set_num_threads(threads)
    image = pictures(1, SQUARE_PX - 16)[0]  # with zeros around it, as both see it, one square
    before = held_bytes()
    if who == "theirs":
        model = load_theirs(path, "float32")
        call = lambda: model.eval(image, compute_masks=False)  # noqa: E731
    else:
        from cellkit.models.sam_maps import predict_maps

        network = load_ours(path, "float32")
        call = lambda: next(predict_maps(network, [image]))  # noqa: E731
    found = call()
    maps = found if who == "ours" else np.stack([*found[1][1], found[1][2]])
    np.save(path.with_suffix(f".{who}.npy"), maps)
    begun = time.process_time()
    call()
    seconds = time.process_time() - begun
    return {"seconds": round(seconds, 2), "peak_gb": round((held_bytes() - before) / GB, 2)}


def held_bytes() -> float:
    """Return the most memory this process has held; on Linux its own, where `peak_bytes` has that of its parent too."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), peak_bytes())


# ---- tables ----------------------------------------------------------------------------------------------------------
def processor_rows(ours: Path, theirs: Path, threads: int) -> list[dict]:
    """Return the row of each on a processor, and assert that their maps are the same."""
    rows = [{"who": who, **on_processor(who, path, threads)} for who, path in (("theirs", theirs), ("ours", ours))]
    maps = [np.load(path.with_suffix(f".{who}.npy")) for who, path in (("theirs", theirs), ("ours", ours))]
    away = float(np.abs(maps[0] - maps[1]).max())
    assert away < SAME, f"maps differ by {away}"
    print(f"\none square of {SQUARE_PX} px on a processor, float32, {threads} threads; maps differ by {away:.1e}\n")
    print("| | seconds | memory (GB) |\n|---|---|---|")
    for row in rows:
        print(f"| {row['who']} | {row['seconds']:.2f} | {row['peak_gb']:.2f} |")
    return rows


def gpu_rows(ours: Path, theirs: Path, images: Sequence[np.ndarray], repeats: int) -> list[dict]:
    """Return a row of each number type and batch on a GPU, and print them."""
    rows = []
    print(f"\n{len(images)} images of {images[0].shape[0]} px, {torch.cuda.get_device_name()}; theirs / ours\n")
    print(
        "| number type | at once | squares/s | maps, images/s | masks, images/s | GPU memory (GB) | masks, ours/theirs |"
    )
    print("|---|---|---|---|---|---|---|")
    for precision in ("bfloat16", "tf32", "float32"):
        sides = [
            of_each_batch(lambda: (load_theirs(theirs, precision), None), precision, images, repeats),  # noqa: B023
            of_each_batch(lambda: (None, load_ours(ours, precision)), precision, images, repeats),  # noqa: B023
        ]
        for batch, *both in zip(BATCHES, *sides, strict=True):
            row = {"precision": precision, "at_once": batch, "theirs": both[0], "ours": both[1]}
            rows.append(row)
            told = [f"{both[0][key]:.4g} / {both[1][key]:.4g}" for key in ("squares_s", "maps_s", "masks_s", "peak_gb")]
            ratio = both[1]["masks_s"] / both[0]["masks_s"]
            print(f"| {precision} | {batch} | {' | '.join(told)} | {ratio:.2f} |", flush=True)
    return rows


def of_each_batch(
    loaded: Callable[[], tuple], precision: str, images: Sequence[np.ndarray], repeats: int
) -> list[dict[str, float]]:
    """Return what one of the two does with each batch; it is loaded once, and gone afterwards."""
    model, network = loaded()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    found = [measured(model, network, images, batch, repeats) for batch in BATCHES]
    del model, network
    gc.collect()
    torch.cuda.empty_cache()
    return found


def measured(model: Any, network: Any, images: Sequence[np.ndarray], batch: int, repeats: int) -> dict[str, float]:
    """Return what one of the two does with a batch: `model` is the package's, or `network` ours."""
    from cellkit.models.sam_maps import DEFAULTS, predict_maps, segment_images

    torch.cuda.reset_peak_memory_stats()
    net = model.net if network is None else network
    dtype = net.dtype if network is None else torch.float32
    squares = torch.rand(batch, 3, SQUARE_PX, SQUARE_PX, device=net.device, dtype=dtype)

    def alone(times: int) -> None:
        with torch.no_grad(), network.arithmetic.autocast() if network is not None else nullcontext():
            for _ in range(times):
                net(squares)

    def maps(images: Sequence[np.ndarray]) -> None:
        if network is None:
            model.eval(list(images), batch_size=batch, compute_masks=False)
        else:
            list(predict_maps(network, images, at_once=batch))

    def masks(images: Sequence[np.ndarray]) -> list:
        if network is None:
            return model.eval(list(images), batch_size=batch)[0]
        return [found for _, found, _ in segment_images(network, images, **DEFAULTS, at_once=batch)]

    def best(call: Callable, given: Any) -> float:
        return min(seconds_of(lambda: call(given)) for _ in range(repeats))

    times = max(2, 64 // batch)
    alone(2)
    found = {"squares_s": times * batch / best(alone, times)}
    maps(images[:2])
    found["maps_s"] = len(images) / best(maps, images)
    with showing_cells(net):
        first = masks(images[:2])
        found["cells"] = float(first[0].max() if network is None else len(first[0]))
        found["masks_s"] = len(images) / best(masks, images)
    found["peak_gb"] = torch.cuda.max_memory_allocated() / GB
    return {key: round(value, 3) for key, value in found.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="a JSON file of all numbers")
    parser.add_argument("--images", type=int, default=16, help="on a GPU")
    parser.add_argument("--side", type=int, default=512, help="height and width of these images (px)")
    parser.add_argument("--repeats", type=int, default=1, help="of each, the best counts")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="on a processor")
    parser.add_argument("--no-processor", action="store_true", help="only the GPU's tables")
    parser.add_argument("--no-training", action="store_true", help="without the steps of a training")
    parser.add_argument("--one", nargs=2, metavar=("WHO", "WEIGHTS"), help=argparse.SUPPRESS)
    told = parser.parse_args(arguments)
    torch.sparse.check_sparse_tensor_invariants.disable()  # said aloud, or torch warns of the package's masks
    if told.one:
        torch.cuda.is_available = lambda: False
        print(json.dumps(measure_one(told.one[0], Path(told.one[1]), told.threads)))
        return
    LOG.setLevel("WARNING")
    rows: dict[str, Any] = {"torch": torch.__version__, "arithmetic": str(arithmetic())}
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = write_weights(Path(folder))
        if not told.no_processor:
            rows["processor"] = processor_rows(ours, theirs, told.threads)
        if torch.cuda.is_available():
            rows["gpu"] = gpu_rows(ours, theirs, pictures(told.images, told.side), told.repeats)
    if not told.no_training:
        rows["training"] = sam_training.rows(told.threads, processor=not told.no_processor)
    if told.out:
        told.out.write_text(json.dumps(rows, indent=1) + "\n")
    slow = [row for row in rows.get("gpu", []) if row["ours"]["masks_s"] < WANTED * row["theirs"]["masks_s"]]
    if slow:
        print("\nless than wanted at", ", ".join(f"{row['precision']} {row['at_once']}" for row in slow))


if __name__ == "__main__":
    main()
