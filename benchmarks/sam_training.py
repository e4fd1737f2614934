"""A training step of Cellpose-SAM, ours and cellpose's `train_seg`: `python benchmarks/sam_training.py`.

Full size (ViT-L), random weights, one drawn image of 256 px, one crop a step. A step is timed from the end of the one before,
as both call `torch.optim.AdamW.step`; the first, which also sets up, is left out, and so is what `train_seg` takes to
make flows and to save weights. Each is a process of its own. Seconds are those of the clock, on one thread the processor's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from cellkit.machine import GB, peak_bytes

TILE_PX = 256
WANTED_MEMORY, WANTED_SPEED, WANTED_ON_GPU = 0.75, 1.5, 2.0
Measured = dict[str, float]


def picture() -> tuple[np.ndarray, np.ndarray]:
    """Return a drawn image (256, 256, 3) uint8 and its cells (256, 256) int32."""
    from cellkit.cells.drawn.camera import expose
    from cellkit.cells.drawn.field import draw_field
    from cellkit.cells.drawn.style import FieldStyle

    style = FieldStyle(size_px=(TILE_PX, TILE_PX), diameter_px=30.0)
    field = draw_field(("HEK", "N2a"), style, 0)
    image = np.zeros((TILE_PX, TILE_PX, 3), np.uint8)
    for colour, plane in zip((2, 1), expose(field, style, 1), strict=True):
        low, high = np.percentile(plane, (0.3, 99.8))
        image[..., colour] = np.clip((plane - low) / (high - low), 0, 1) * 255
    return image, field.labels.astype(np.int32)


def ours(steps: int, way: str = "late", precision: str = "float32", batch: int = 1, **more: Any) -> None:
    """Take so many steps with the loop and the loss of notebook 03."""
    from cellkit.cells.instances import Instances
    from cellkit.models.sam_network import load_start
    from cellkit.models.sam_training import Adaptation, loss_of
    from cellkit.models.shared.flow_loss import Prepared
    from cellkit.models.shared.flows import target_of
    from cellkit.models.training import fit, plan_of

    image, labels = picture()
    planes = np.ascontiguousarray(image.transpose(2, 0, 1), np.float32) / 255
    item = Prepared(planes, target_of(Instances.from_labels(labels).paint()))
    config = Adaptation(way=way, steps=steps, eval_every=steps, batch_size=batch, at_once=batch, **more)
    loss_at = loss_of(load_start("scratch", precision=precision), [item], config)
    with tempfile.TemporaryDirectory() as out:
        fit(loss_at.network, loss_at, lambda: 0.0, plan_of(config, "ours"), Path(out), "a", choose=False)


def train_seg(steps: int, precision: str = "float32", batch: int = 1) -> None:
    """Do the same with `cellpose.train.train_seg`, which trains all weights in float32."""
    import torch
    from cellpose.train import train_seg as train
    from cellpose.vit import CPSAM

    image, labels = picture()
    network = CPSAM().to("cuda" if torch.cuda.is_available() else "cpu")
    network.dtype = getattr(torch, precision)
    with tempfile.TemporaryDirectory() as out:
        train(
            network, [image], [labels], channel_axis=2, n_epochs=1, nimg_per_epoch=steps * batch, batch_size=batch,
            min_train_masks=1, save_path=out,
        )  # fmt: skip


JOBS: dict[str, Callable[..., None]] = {"ours": ours, "train_seg": train_seg}


def timed(job: str, steps: int, **options: Any) -> Measured:
    """Do a job in this process: seconds of a step, and peak memory (GB), on a GPU that of the GPU."""
    import torch

    from cellkit.models.shared.cost import clock

    ends, real = [], torch.optim.AdamW.step

    def step(self: torch.optim.AdamW, *given: Any, **named: Any) -> Any:
        result = real(self, *given, **named)
        ends.append(clock())
        return result

    torch.optim.AdamW.step = step
    try:
        JOBS[job](steps, **options)
    finally:
        torch.optim.AdamW.step = real
    on_gpu = torch.cuda.is_available()
    return {
        "step_s": median(np.diff(ends)),
        "peak_gb": (torch.cuda.max_memory_allocated() if on_gpu else peak_bytes()) / GB,
    }


def measure(job: str, steps: int, threads: int | None = None, **options: Any) -> Measured:
    """Do a job in a process of its own: on a GPU, or on that many threads of the processor."""
    env = dict(os.environ)
    if threads:
        env |= {"CUDA_VISIBLE_DEVICES": "", **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))}
    command = [sys.executable, __file__, "--job", job, str(steps), json.dumps(options)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{job}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


# ---- tables --------------------------------------------------------------------------------------------------------
def processor_rows(steps: int, threads: int) -> list[dict[str, Any]]:
    """Return and print a step of both on a processor, float32: blocks near the end against all weights."""
    rows = [{"who": who, **measure(who, steps, threads)} for who in ("train_seg", "ours")]
    print(f"\na training step of one crop of {TILE_PX} px on a processor, float32, {threads} threads\n")
    print("| | s a step | steps, to train_seg's | peak (GB) | peak, to train_seg's |\n|---|---|---|---|---|")
    _print_rows(rows)
    faster, memory = rows[0]["step_s"] / rows[1]["step_s"], rows[1]["peak_gb"] / rows[0]["peak_gb"]
    print(f"wanted: {WANTED_SPEED} times as fast, {'got' if faster >= WANTED_SPEED else 'MISSED'}; ", end="")
    print(f"{WANTED_MEMORY} of the memory, {'got' if memory <= WANTED_MEMORY else 'MISSED'}")
    return rows


def gpu_rows(steps: int) -> list[dict[str, Any]]:
    """Return and print a step of both on a GPU: ours in bfloat16 and float32, and by each way; train_seg computes in float32."""
    import torch

    rows = [{"who": "train_seg", **measure("train_seg", steps)}]
    for precision in ("bfloat16", "float32"):
        for way in ("late", "all", "lora", "head") if find_spec("peft") else ("late", "all", "head"):
            row = measure("ours", steps, way=way, precision=precision)
            rows.append({"who": f"ours, {way}, {precision}", "way": way, **row})
    print(f"\na training step of one crop of {TILE_PX} px, {torch.cuda.get_device_name()}\n")
    print("| | s a step | steps, to train_seg's | peak (GB) | peak, to train_seg's |\n|---|---|---|---|---|")
    _print_rows(rows)
    late = [rows[0]["step_s"] / row["step_s"] for row in rows if row.get("way") == "late"]
    print(f"wanted: {WANTED_ON_GPU} times as fast in both, {'got' if min(late) >= WANTED_ON_GPU else 'MISSED'}")
    return rows


def rows(threads: int, steps: int = 3, gpu_steps: int = 30, processor: bool = True) -> dict[str, list[dict[str, Any]]]:
    """Return and print all rows, where there is a GPU those of it too."""
    import torch

    found = {"gpu": gpu_rows(gpu_steps)} if torch.cuda.is_available() else {}
    return found | ({"processor": processor_rows(steps, threads)} if processor else {})


def _print_rows(rows: list[dict[str, Any]]) -> None:
    first = rows[0]
    for row in rows:
        told = f"{row['step_s']:.4g} | {first['step_s'] / row['step_s']:.2f} | {row['peak_gb']:.2f}"
        print(f"| {row['who']} | {told} | {row['peak_gb'] / first['peak_gb']:.2f} |", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3, help="on a processor")
    parser.add_argument("--gpu-steps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1, help="of the processor")
    parser.add_argument("--no-processor", action="store_true", help="only the GPU's table")
    parser.add_argument("--job", nargs=3, metavar=("JOB", "STEPS", "OPTIONS"), help=argparse.SUPPRESS)
    told = parser.parse_args(arguments)
    if told.job:
        print(json.dumps(timed(told.job[0], int(told.job[1]), **json.loads(told.job[2]))))
        return
    rows(told.threads, told.steps, told.gpu_steps, not told.no_processor)


if __name__ == "__main__":
    main()
