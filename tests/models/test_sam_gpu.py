"""Cellpose-SAM on a GPU: number types, memory that runs out, the same weights again, two GPUs."""

from __future__ import annotations

import pytest
import torch
from sam_learnt import data_of, learnt

from cellkit.models import cellpose_sam as sam
from cellkit.models.sam_network import Shape, load_start
from cellkit.models.sam_training import Adaptation, loss_of
from cellkit.models.shared.flow_loss import Prepared
from cellkit.models.weights import load_tensors

pytestmark = pytest.mark.gpu
GPUS = torch.cuda.device_count()
READ = {"flow_threshold": 0.4, "cellprob_threshold": 0.0, "min_area_px": 15}


@pytest.fixture(scope="module", autouse=True)
def on_a_gpu():
    if not GPUS:
        pytest.skip("no GPU")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return learnt(tmp_path_factory.mktemp("base") / "base", 150)


@pytest.fixture
def data(tmp_path):
    images = data_of(tmp_path / "images", ("train", "train", "val"))
    return images.select("train"), images.select("val")


def settings(base, **changes):
    few = {"steps": 6, "batch_size": 4, "crop_px": 64, "eval_every": 3, "late_blocks": 1, "learning_rate": 1e-3}
    return sam.TrainSettings(**({"base": str(base)} | few | READ | changes))


def away(one, other) -> float:
    return max(float((tensor - other[name]).abs().max()) for name, tensor in one.items())


@pytest.mark.parametrize("way", ["late", "lora"])
def test_products_are_bfloat16_and_weights_float32(way, base, data, tmp_path):
    pytest.importorskip("peft") if way == "lora" else None
    seen = []
    network = load_start(str(base), precision="bfloat16")
    hook = network.encoder.blocks[1].mlp.lin1.register_forward_hook(lambda module, given, out: seen.append(out.dtype))
    item = sam._item(*data[0][0], {"diameter_px": None, "channels": "all", "normalise": (1.0, 99.0)})
    loss_of(network, [item], settings(base, way=way, stochastic_depth=0.0))(0)
    hook.remove()
    assert set(seen) == {torch.bfloat16}
    assert (
        {p.dtype for p in network.parameters()}
        == {torch.float32}
        == {p.grad.dtype for p in network.parameters() if p.grad is not None}
    )
    exact, half = (load_tensors(sam.train(*data, settings(base, way=way, precision=kind), tmp_path / kind))
                   for kind in ("float32", "bfloat16"))  # fmt: skip
    assert 0 < away(exact, half) < 0.02


def test_the_same_weights_again_but_for_rounding(base, data, tmp_path):
    one, other = (
        load_tensors(sam.train(*data, settings(base, precision="float32"), tmp_path / str(k))) for k in range(2)
    )
    assert away(one, other) < 1e-4


def test_memory_that_runs_out_halves_what_goes_through_at_a_time(capsys):
    """A network of some width, in a share of the GPU's memory that holds two of its eight crops."""
    shape = Shape(width=512, depth=4, heads=8, mlp=2048, neck=64, places=(127, 27, 27, 127))
    planes = torch.rand(3, 256, 256).numpy()
    item = Prepared(planes, torch.rand(3, 256, 256).round().numpy())
    network = load_start("scratch", 0, shape, "float32")
    how = Adaptation(way="all", batch_size=8, at_once=8, recompute=False, stochastic_depth=0.0)
    wanted, peaks = loss_of(network, [item], how), []
    for most in (2, 8):
        wanted.most = most
        network.zero_grad(set_to_none=True)
        torch.cuda.reset_peak_memory_stats()
        loss = float(wanted(0))
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] > 1.5 * peaks[0]
    gradients = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    share = (peaks[0] + peaks[1]) / 2 / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(share)
    try:
        again = loss_of(network, [item], how)
        assert float(again(0)) == pytest.approx(loss, rel=1e-3) and again.most < 8
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "out of memory, so from here on" in capsys.readouterr().err
    for mine, theirs in zip((p.grad for p in network.parameters() if p.grad is not None), gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0.02, atol=1e-4)


@pytest.mark.skipif(GPUS < 2, reason="one GPU")
def test_two_gpus_take_the_steps_of_one(base, data, tmp_path):
    pytest.importorskip("accelerate")
    one = load_tensors(sam.train(*data, settings(base, precision="float32"), tmp_path / "one"))
    two = load_tensors(sam.train(*data, settings(base, precision="float32", gpus=2), tmp_path / "two"))
    assert away(one, two) < 1e-3
