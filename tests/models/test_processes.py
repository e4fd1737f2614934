"""A U-Net trained in two processes: the steps of one, the death of one ends all, and the training goes on."""

import csv
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from cellkit.errors import UserError
from cellkit.models import cellpose_unet as unet
from cellkit.models.shared.processes import check_processes
from cellkit.models.weights import load_tensors, save_checkpoint

pytest.importorskip("accelerate")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    import torch

    from cellkit.models.unet_network import CellposeUNet

    torch.manual_seed(3)
    network = CellposeUNet(widths=(4, 8, 8, 8))
    path = tmp_path_factory.mktemp("base") / "light.safetensors"
    return save_checkpoint(path, network.state_dict(), unet.NAME, config=network.config)


def told(base, **more) -> dict:
    own = {"base": str(base), "steps": 30, "batch_size": 3, "crop_px": 32, "eval_every": 3, "warmup_steps": 1,
           "diameter_px": 30.0, "flow_threshold": 0.4, "cellprob_threshold": 0.0, "min_area_px": 15, "map_cache_gb": 0,
           "precision": "float32", "learning_rate": 1e-3, "fixed_norms": False, "average_steps": 0}  # fmt: skip
    return own | more


@pytest.fixture(scope="module")
def given(drawn):
    """Three images to learn from, and none to be scored on."""
    return drawn.select("train"), drawn.select("val").subset([])


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "history.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one_also_where_one_was_killed(given, base, tmp_path):
    out, shared = tmp_path / "shared", unet.TrainSettings(**told(base, gpus=2))
    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(unet.train, *given, shared, out)
        while not ((out / "history.csv").is_file() and len(rows(out)) > 2):
            assert not killed.done(), killed.exception()
            time.sleep(0.02)
        ranks = [one for one in psutil.Process().children(recursive=True) if rank_of(one) is not None]
        assert {os.readlink(f"/proc/{one.pid}/fd/0").partition(":")[0] for one in ranks} == {"pipe"}, "ours: see below"
        next(one for one in ranks if rank_of(one) == "1").kill()
        with pytest.raises(RuntimeError, match="a process of the training ended with exit status"):
            killed.result(timeout=60)
    assert len(ranks) == 2 and not psutil.wait_procs(ranks, timeout=5)[1], "all have ended"
    before = rows(out)
    assert len(before) < 10, "it had not come to its end"
    both, alone = (
        unet.train(*given, shared, out),
        unet.train(*given, unet.TrainSettings(**told(base)), tmp_path / "one"),
    )
    kept, gone = ([(row["loss"], row["seconds"]) for row in some] for some in (rows(out)[: len(before)], before))
    assert kept == gone, "it went on: with the seconds that were taken"
    ours, theirs = ([float(row["loss"]) for row in rows(path.parent)[1:]] for path in (both, alone))
    assert ours[:2] == pytest.approx(theirs[:2], rel=1e-4), "but for rounding"
    assert ours == pytest.approx(theirs, rel=0.05), "which the steps of Adam enlarge"
    ours, theirs = load_tensors(both), load_tensors(alone)
    assert set(ours) == set(theirs)
    name = next(
        name for name in ours if "running_mean" in name
    )  # of what the network is shown, whatever it has learned
    apart = float((ours[name] - theirs[name]).abs().max() / theirs[name].abs().max())
    assert apart < 1e-5, "norms look at the whole batch"


def test_a_process_ends_with_the_one_that_began_the_training():
    code = "import time; from cellkit.models.shared.processes import end_with_parent as f; f(); print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        try:
            assert running.stdout.readline() == b"\n" and running.poll() is None
            running.stdin.close()  # as the system does for a process that is gone
            assert running.wait(timeout=20) == 1
        finally:
            running.kill()


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
