"""A training step of Cellpose-SAM, ours and cellpose's `train_seg`: seconds and peak memory, each in a process of its own.

Full size (ViT-L), random weights, one drawn image of 256 px, one crop a step. A step is timed from the end of the one before,
as both call `torch.optim.AdamW.step`; the first, which also sets up, is left out, and so is what `train_seg` takes to
make flows and to save weights. Seconds are the processor's, on a GPU those of the clock.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

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

    ends, real = [], torch.optim.AdamW.step

    def step(self, *given: Any, **named: Any) -> Any:
        result = real(self, *given, **named)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        ends.append(time.perf_counter() if torch.cuda.is_available() else time.process_time())
        return result

    torch.optim.AdamW.step = step
    try:
        JOBS[job](steps, **options)
    finally:
        torch.optim.AdamW.step = real
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"step_s": median(np.diff(ends)), "peak_gb": peak / 1e9}


def measure(job: str, steps: int, threads: int = 1, **options: Any) -> Measured:
    """Do a job in a process of its own."""
    env = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))}
    command = [sys.executable, __file__, job, str(steps), json.dumps(options)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{job}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    print(json.dumps(timed(sys.argv[1], int(sys.argv[2]), **json.loads(sys.argv[3]))))
