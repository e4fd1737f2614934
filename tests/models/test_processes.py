"""A U-Net trained in two processes: the steps of one, the death of one ends all, and the training goes on to the same weights."""

import csv
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from cellkit.errors import UserError
from cellkit.models import cellpose_unet as unet
from cellkit.models.shared.processes import check_processes
from cellkit.models.weights import load_tensors, save_checkpoint

pytest.importorskip("accelerate")
TRAIN = """
import pickle, sys
from pathlib import Path
from cellkit.models import cellpose_unet as unet
train, val, told, out = pickle.loads(Path(sys.argv[1]).read_bytes())
print(unet.train(train, val, unet.TrainSettings(**told), Path(out)))
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    import torch

    from cellkit.models.unet_network import CellposeUNet

    torch.manual_seed(3)
    network = CellposeUNet(widths=(4, 8, 8, 8))
    path = tmp_path_factory.mktemp("base") / "light.safetensors"
    return save_checkpoint(path, network.state_dict(), unet.NAME, config=network.config)


def told(base, **more) -> dict:
    own = {"base": str(base), "steps": 6, "batch_size": 3, "crop_px": 32, "eval_every": 3, "warmup_steps": 1,
           "diameter_px": 30.0, "flow_threshold": 0.4, "cellprob_threshold": 0.0, "min_area_px": 15, "map_cache_gb": 0,
           "precision": "float32", "learning_rate": 1e-3, "patience": 99}  # fmt: skip
    return own | more


def losses(folder: Path) -> np.ndarray:
    with open(folder / "history.csv", newline="") as file:
        return np.array([float(row["loss"] or "nan") for row in csv.DictReader(file)])


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(drawn, base, tmp_path):
    given = drawn.select("train"), drawn.select("val")
    one = unet.train(*given, unet.TrainSettings(**told(base)), tmp_path / "one")
    two = unet.train(*given, unet.TrainSettings(**told(base, gpus=2)), tmp_path / "two")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4, nan_ok=True)
    ours, theirs, start = map(load_tensors, (one, two, base))
    assert set(ours) == set(theirs)
    means = [name for name in start if "running_mean" in name]
    apart = [float((ours[name] - theirs[name]).abs().max() / ours[name].abs().max()) for name in means]
    assert apart[0] < 1e-5 and max(apart) < 0.05, "norms look at the whole batch; Adam's first steps enlarge rounding"
    moved = [float((ours[name] - start[name]).abs().mean()) for name in start if name.endswith("weight")]
    differ = [float((ours[name] - theirs[name]).abs().mean()) for name in start if name.endswith("weight")]
    assert min(moved) > 0 and sum(differ) < 0.05 * sum(moved)


@pytest.mark.slow
def test_a_process_that_is_killed_ends_all_and_the_training_goes_on_to_the_same_weights(drawn, base, tmp_path):
    given = drawn.select("train"), drawn.select("val").subset([])

    def training(name: str) -> tuple[list[str], Path]:
        out = tmp_path / name
        settings = told(base, steps=60, eval_every=5, gpus=2)
        (tmp_path / f"{name}.pickle").write_bytes(pickle.dumps((*given, settings, str(out))))
        return [sys.executable, "-c", TRAIN, str(tmp_path / f"{name}.pickle")], out

    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command, out = training("killed")
    running = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    try:
        while not ((out / "history.csv").is_file() and len(losses(out)) > 2):
            assert running.poll() is None, running.stderr.read()
            time.sleep(0.02)
        ranks = [one for one in psutil.Process(running.pid).children(recursive=True) if rank_of(one) is not None]
        victim = next(one for one in ranks if rank_of(one) == "1")
        victim.kill()
        began = time.monotonic()
        _, said = running.communicate(timeout=60)
        assert time.monotonic() - began < 60
    finally:
        running.kill()
    assert running.returncode and "a process of the training ended with exit status" in said
    assert not psutil.wait_procs(ranks, timeout=5)[1], "all have ended"
    assert losses(out).size < 13, "it had not come to its end"
    made = [subprocess.run(training(name)[0], env=env, capture_output=True, text=True, check=True)
            for name in ("killed", "whole")]  # fmt: skip
    assert "resumed at step" in made[0].stderr and "resumed at step" not in made[1].stderr
    weights = [load_tensors(Path(one.stdout.strip().splitlines()[-1])) for one in made]
    assert all(bool((weights[0][name] == weights[1][name]).all()) for name in weights[1])


def rank_of(process: psutil.Process) -> str | None:
    try:
        environ = process.environ()
    except psutil.Error:
        return None
    return environ.get("RANK")


def test_more_processes_than_crops_are_refused(base):
    with pytest.raises(UserError, match="finetune.gpus is 4, and a batch has 3 crops"):
        unet.check(unet.TrainSettings(**told(base, gpus=4)))
    check_processes(1, 0)
