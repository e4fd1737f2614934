"""Kill a labelling and a training with kill -9 at random points, let them go on, compare the files with undisturbed ones.

`python tests/killing.py FOLDER --kills 20 --seed 0`. What lies on a disk changes only where a file is opened, renamed or
removed: a point is one of these, drawn by the seed. What the work imports is imported once; each attempt is a process split
off from here.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib
import json
import os
import random
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import cellkit.models.training as training
from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.microscope.journal import png_parts
from cellkit.models import cellpose_unet as unet
from cellkit.models import weights
from cellkit.models.unet_network import BACKEND, CellposeUNet
from cellkit.predict.files import predict_files
from cellkit.predict.model import find_model

EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")
SIDE_PX, IMAGES = 48, 5


# ---- what is done ----------------------------------------------------------------------------------------------------
def prepare(root: Path) -> CellDataset:
    """Write images of bright discs and a narrow network of random numbers; return the images with their cells."""
    rng, y, x = np.random.default_rng(0), *np.mgrid[:SIDE_PX, :SIDE_PX]
    records, cells = [], []
    (root / "images").mkdir(parents=True)
    for k in range(IMAGES):
        labels = np.zeros((SIDE_PX, SIDE_PX), np.int32)
        for number, (cy, cx) in enumerate(rng.integers(8, SIDE_PX - 8, (3, 2)), start=1):
            labels[(y - cy) ** 2 + (x - cx) ** 2 < 49] = number
        image = np.zeros((SIDE_PX, SIDE_PX, 3), np.uint8)
        image[..., 1] = np.clip(120 * (labels > 0) + rng.normal(60, 12, labels.shape), 0, 255)
        (root / f"images/{k}.png").write_bytes(b"".join(png_parts(image, float("nan"))))
        cells.append(Instances.from_labels(labels))
        split = "val" if k == IMAGES - 1 else "train"
        records.append(ImageRecord(str(k), f"images/{k}.png", SIDE_PX, SIDE_PX, cell_type="a", split=split))
    torch.manual_seed(0)
    network = CellposeUNet(widths=(4, 8, 8, 8))
    weights.save_checkpoint(root / "start.safetensors", network.state_dict(), BACKEND, config=network.config)
    return CellDataset(records, cells, ("a",), root, list(range(1, IMAGES + 1)))


def label(root: Path, images: CellDataset, out: Path) -> None:
    """Find cells by the network of random numbers, as `cellkit predict` does."""
    model = find_model(root / "start.safetensors", {"diameter_px": 30.0, "cellprob_threshold": -1.0})
    predict_files(model, [root / "images"], out / "found.json", out / "labels")


def train(root: Path, images: CellDataset, out: Path) -> None:
    """Train for a few steps; the state is saved after each."""
    training.SAVE_EVERY_S = -1.0
    settings = {"diameter_px": 30.0, "steps": 6, "eval_every": 2, "batch_size": 1, "crop_px": 32, "warmup_steps": 1}
    config = unet.TrainSettings(
        base=str(root / "start.safetensors"), flow_threshold=0.4, cellprob_threshold=0.0, **settings
    )
    unet.train(images.select("train"), images.select("val"), config, out)


# ---- how it is killed ------------------------------------------------------------------------------------------------
def attempt(work: Callable, root: Path, images: CellDataset, out: Path, kill_at: int) -> tuple[bool, int]:
    """Do the work in a process of its own, which kills itself at its event number `kill_at`; -1 = it is left alone.

    Returns
    -------
    finished : bool
    events : int
        How many files were opened, renamed or removed in `out`.
    """
    out.mkdir(exist_ok=True)
    pipe = os.pipe()
    child = os.fork()
    if not child:
        seen = 0

        def note(event: str, given: tuple) -> None:
            nonlocal seen
            if event in EVENTS and str(given[0]).startswith(str(out)):
                if seen == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                seen += 1

        sys.addaudithook(note)
        try:
            work(root, images, out)
            with os.fdopen(pipe[1], "w") as told:
                json.dump([seen, sorted(sys.modules)], told)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(pipe[1])
    with os.fdopen(pipe[0]) as told:
        text = told.read()
    status = os.waitpid(child, 0)[1]
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    if killed:
        return False, 0
    if not text:
        raise RuntimeError(f"{work.__name__} failed")
    seen, modules = json.loads(text)
    for name in modules:  # so that the next child need not
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    return True, seen


def results(out: Path) -> dict[str, object]:
    """Return what lies in a folder, without what tells a time: of the history its scores."""
    found: dict[str, object] = {}
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        name = path.relative_to(out).as_posix()
        if path.name == "history.csv":
            found[name] = [[row[k] for k in ("step", "score", "kept")] for row in csv.DictReader(path.open())]
        elif path.name != "last.safetensors" and not path.name.startswith(
            ".tmp-"
        ):  # a history; cleared by `stage.done`
            found[name] = path.read_bytes()
    return found


def kill_often(work: Callable, root: Path, images: CellDataset, kills: int, seed: int) -> dict[str, int]:
    """Kill `work` so many times at random points, each time going on; begin anew where it is done before.

    Raises
    ------
    AssertionError
        A file is not as the undisturbed work made it.
    """
    rng, whole = random.Random(f"{work.__name__} {seed}"), root / f"{work.__name__}_whole"
    _, events = attempt(work, root, images, whole, -1)
    expected, done, rounds = results(whole), 0, 0
    out = root / f"{work.__name__}_torn"
    while done < kills:
        rounds += 1
        finished = False
        while not finished:
            finished, _ = attempt(work, root, images, out, rng.randrange(events) if done < kills else -1)
            done += not finished
        found = results(out)
        different = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
        assert not different, f"{work.__name__}, seed {seed}, after {done} kills: {different}"
        shutil.rmtree(out)
    return {"kills": done, "rounds": rounds, "events": events, "files": len(expected)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    root = given.folder.resolve()
    images = prepare(root)
    print(
        json.dumps({work.__name__: kill_often(work, root, images, given.kills, given.seed) for work in (label, train)})
    )


if __name__ == "__main__":
    main()
