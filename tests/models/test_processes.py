"""A U-Net trained in two processes: the steps of one, the death of one ends all, and the training goes on to the same weights."""

import csv
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

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
    own = {"base": str(base), "steps": 60, "batch_size": 3, "crop_px": 32, "eval_every": 3, "warmup_steps": 1,
           "diameter_px": 30.0, "flow_threshold": 0.4, "cellprob_threshold": 0.0, "min_area_px": 15, "map_cache_gb": 0,
           "precision": "float32", "learning_rate": 1e-3}  # fmt: skip
    return own | more


@pytest.fixture(scope="module")
def given(drawn):
    """Three images to learn from, and none to be scored on."""
    return drawn.select("train"), drawn.select("val").subset([])


@pytest.fixture(scope="module")
def shared(given, base, tmp_path_factory) -> Path:
    """The checkpoint of an undisturbed training in two processes."""
    return unet.train(*given, unet.TrainSettings(**told(base, gpus=2)), tmp_path_factory.mktemp("shared"))


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "history.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(given, base, shared, tmp_path):
    one = unet.train(*given, unet.TrainSettings(**told(base)), tmp_path)
    alone, both = ([float(row["loss"]) for row in rows(path.parent)[1:]] for path in (one, shared))
    assert both[:2] == pytest.approx(alone[:2], rel=1e-4), "but for rounding"
    assert both == pytest.approx(alone, rel=0.1), "which the steps of Adam enlarge"
    ours, theirs = load_tensors(one), load_tensors(shared)
    assert set(ours) == set(theirs)
    name = next(
        name for name in ours if "running_mean" in name
    )  # of what the network is shown, whatever it has learned
    assert float((ours[name] - theirs[name]).abs().max() / ours[name].abs().max()) < 1e-5, (
        "norms look at the whole batch"
    )


@pytest.mark.slow
def test_a_process_that_is_killed_ends_all_and_the_training_goes_on_to_the_same_weights(given, base, shared, tmp_path):
    out = tmp_path / "killed"
    (tmp_path / "job.pickle").write_bytes(pickle.dumps((*given, told(base, gpus=2), str(out))))
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", TRAIN, str(tmp_path / "job.pickle")]
    running = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    try:
        while not ((out / "history.csv").is_file() and len(rows(out)) > 2):
            assert running.poll() is None, running.stderr.read()
            time.sleep(0.02)
        ranks = [one for one in psutil.Process(running.pid).children(recursive=True) if rank_of(one) is not None]
        next(one for one in ranks if rank_of(one) == "1").kill()
        _, said = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode and "a process of the training ended with exit status" in said
    assert not psutil.wait_procs(ranks, timeout=5)[1], "all have ended"
    before = rows(out)
    assert len(before) < 20, "it had not come to its end"
    again = unet.train(*given, unet.TrainSettings(**told(base, gpus=2)), out)
    kept, gone = ([(row["loss"], row["seconds"]) for row in some] for some in (rows(out)[: len(before)], before))
    assert kept == gone, "it went on: with the seconds that were taken"
    ours, theirs = load_tensors(again), load_tensors(shared)
    assert all(bool((ours[name] == theirs[name]).all()) for name in theirs)


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
