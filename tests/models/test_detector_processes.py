"""A detector trained in two processes: it learns as one does, always the same, and goes on. For deaths see `test_processes`."""

import os
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from backend_cases import config_of, each
from test_processes import rows

from cellkit.errors import UserError
from cellkit.models import get_backend
from cellkit.models.unet_network import CellposeUNet
from cellkit.models.weights import load_tensors, save_checkpoint

pytest.importorskip("accelerate")
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")
BOTH = each("maskrcnn_torchvision", "maskrcnn_detectron2")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    torch.manual_seed(3)
    network = CellposeUNet(widths=(4, 8, 8, 8))
    path = tmp_path_factory.mktemp("base") / "light.safetensors"
    return save_checkpoint(path, network.state_dict(), "cellpose_unet", config=network.config)


def told(name, base, **more):
    """The heads learn from features that are kept; in the second half of the steps the encoder learns too."""
    own = {"start": str(base), "freeze_backbone": True, "unfreeze_after": 0.5, "steps": 8, "batch_size": 3, "eval_every": 2,
           "precision": "float32", "cells_per_step": 5, "diameter_px": 30.0, "val_images": 2, "crop_px": 32,
           "boxes_per_image": 16}  # fmt: skip
    return config_of(name, **own | more)


@pytest.mark.slow
@pytest.mark.parametrize("name", BOTH)
def test_two_processes_learn_always_the_same_also_where_they_go_on(name, base, drawn, tmp_path):
    train, given = get_backend(name).train, (drawn.select("train"), drawn.select("val"))
    shared, out = told(name, base, gpus=2), tmp_path / "whole"
    with ThreadPoolExecutor(1) as pool:
        whole = pool.submit(train, *given, shared, out)
        while not ((out / "history.csv").is_file() and len(rows(out)) > 2):
            assert not whole.done(), whole.exception()
            time.sleep(0.02)
        shutil.copytree(out, tmp_path / "left", ignore=shutil.ignore_patterns("*.tmp*", ".*"))  # as a death leaves it
        whole = whole.result()
    before = rows(tmp_path / "left")
    again = train(*given, shared, tmp_path / "left")
    kept, gone = (
        [(row["loss"], row["seconds"]) for row in some] for some in (rows(again.parent)[: len(before)], before)
    )
    assert kept == gone and len(before) < 5, "it went on: with the seconds that were taken"
    ours, theirs = load_tensors(again), load_tensors(whole)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs), "bit by bit as if nothing had happened"
    alone = train(*given, told(name, base), tmp_path / "one")
    ours, theirs = ([float(row["loss"]) for row in rows(path.parent)[1:]] for path in (whole, alone))
    assert ours == pytest.approx(theirs, rel=0.25), "other crops are drawn, no more and no less is learned"
    assert ours[-1] < ours[0]


IN_TWO = """
import sys
import torch
from torch import nn
from cellkit.models.shared.processes import end_together, place
from cellkit.models.shared.shares import InShares, all_shares, dealt_out, own_share, total

rank, count = place()
assert (count, own_share(5), own_share(1), all_shares(5), all_shares(1)) == (2, 3 - rank, 1, 5, 2)
assert dealt_out(list(range(5)), lambda k: (k * k, rank)) == [(0, 0), (1, 1), (4, 0), (9, 1), (16, 0)]
assert total(rank + 1, "cpu") == 3
network = nn.ModuleDict({name: nn.Linear(1, 1, bias=False) for name in ("both", "one", "none")})
network["norm"] = nn.BatchNorm1d(2)
network["still"] = nn.BatchNorm1d(2).eval()
network["still"].running_mean.fill_(rank)

def loss_at(step):
    network["norm"](torch.full((2, 2), 10.0 * (rank + 1)))
    x = torch.full((1, 1), float(rank + 1 + step))
    share = network["both"](x).sum()
    return share + network["one"](x).sum() if rank else share

with torch.no_grad():
    for name in ("both", "one", "none"):
        network[name].weight.fill_(1.0)
loss = InShares(loss_at, network)(1)
gradients = {name: network[name].weight.grad for name in ("both", "one", "none")}
assert not loss.requires_grad and float(loss) == 2 + 3 + 3, loss
assert (gradients["both"].item(), gradients["one"].item(), gradients["none"]) == (5, 3, None), "what none has stays as it is"
assert network["norm"].running_mean.tolist() == [1.5, 1.5] and network["still"].running_mean[0] == rank
print("well", flush=True)
end_together()
"""


def test_shares_add_up_to_the_whole():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    place = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}

    def share(rank: int) -> tuple[int, str, str]:
        env = os.environ | place | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        done = subprocess.run([sys.executable, "-c", IN_TWO], env=env, capture_output=True, text=True, timeout=120)
        return done.returncode, done.stdout, done.stderr

    with ThreadPoolExecutor(2) as pool:
        told = list(pool.map(share, range(2)))
    assert [(code, out) for code, out, _ in told] == [(0, "well\n")] * 2, told


@pytest.mark.parametrize("name", BOTH)
def test_more_processes_than_crops_are_refused(name, base):
    with pytest.raises(UserError, match="maskrcnn.gpus is 4, and a batch has 3 crops"):
        get_backend(name).check(told(name, base, gpus=4))
