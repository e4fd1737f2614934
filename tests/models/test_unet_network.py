"""The U-Net's widths: written to its card, read from it, or from the tensors; and what is built on its encoder follows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cellkit.errors import UserError
from cellkit.files import read_json, write_json
from cellkit.machine import arithmetic
from cellkit.models import cellpose_unet as unet
from cellkit.models import maskrcnn_torchvision as maskrcnn
from cellkit.models import unet_maps, weights
from cellkit.models.shared.inputs import two_channels
from cellkit.models.unet_network import (
    WIDTHS,
    CellposeUNet,
    _Up,
    doubled_convolution,
    load_network,
    load_start,
)

NARROW = (4, 8, 12, 16)
FEW = {"steps": 2, "batch_size": 2, "crop_px": 64, "warmup_steps": 1, "eval_every": 2, "val_images": 1}


@pytest.fixture
def narrow(tmp_path):
    """Random weights of a narrow network, with a card."""
    network = load_start("scratch", 3, NARROW)
    card = {**unet.DEFAULTS, "diameter_px": 30.0, **network.config}
    return weights.save_checkpoint(tmp_path / "narrow.safetensors", network.state_dict(), unet.NAME, config=card)


def test_the_usual_widths_are_not_told(tmp_path):
    assert CellposeUNet().config == {} and CellposeUNet(widths=list(WIDTHS)).config == {}
    assert CellposeUNet(widths=NARROW).config == {"widths": [4, 8, 12, 16]}
    light = sum(value.numel() for value in CellposeUNet(widths=(16, 32, 64, 128)).parameters())
    usual = sum(value.numel() for value in CellposeUNet().parameters())
    assert 0.24 < light / usual < 0.26


def test_a_narrow_network_trains_saves_and_loads(drawn, narrow, tmp_path):
    train, val = drawn.select("train"), drawn.select("val")
    config = unet.TrainSettings(base=str(narrow), flow_threshold=0.4, cellprob_threshold=0.0, **FEW)
    tuned = unet.train(train, val, config, tmp_path / "tuned")
    network, card = load_network(tuned)
    assert network.widths == NARROW and card["widths"] == [4, 8, 12, 16]
    before = load_network(narrow)[0].state_dict()
    assert any(not torch.equal(before[k], v) for k, v in network.state_dict().items())
    assert weights.read_card(unet.calibrate(train, config, tmp_path / "base")).config["widths"] == [4, 8, 12, 16]
    (found,) = unet.load(tuned)([drawn.image(0)])
    assert found.shape == (128, 128)


def test_without_a_card_the_widths_are_those_of_the_tensors(tmp_path):
    network = CellposeUNet(widths=NARROW)
    torch.save(network.state_dict(), tmp_path / "narrow")
    loaded, card = load_network(tmp_path / "narrow")
    assert loaded.widths == NARROW and card == {}


@pytest.mark.parametrize("told", [None, [4, 8, 12, 32], "narrow"])
def test_tensors_of_other_widths_than_the_card_says_are_refused(narrow, told):
    side = narrow.with_suffix(".json")
    card = read_json(side)
    card["config"].pop("widths")
    card["config"] |= {} if told is None else {"widths": told}
    write_json(side, card)
    said = r"\[32, 64, 128, 256\]" if told is None else str(told).replace("[", r"\[")
    with pytest.raises(UserError, match=rf"are \[4, 8, 12, 16\] channels wide, its card says {said}"):
        load_network(narrow)


def test_a_network_whose_tensors_do_not_fit_each_other_is_refused(tmp_path):
    tensors = CellposeUNet(widths=NARROW).state_dict()
    tensors["upsample.up.res_up_0.proj.1.weight"] = tensors["upsample.up.res_up_0.proj.1.weight"].transpose(0, 1)
    torch.save(tensors, tmp_path / "turned")  # as many numbers, in another shape
    with pytest.raises(UserError, match="0 tensors missing, 1 of another size"):
        load_network(tmp_path / "turned")


@pytest.mark.parametrize("name", ["diam_mean", "diam_labels"])
@pytest.mark.parametrize("px", [0.0, -30.0])
def test_cells_without_a_width_are_refused(tmp_path, name, px):
    torch.save(CellposeUNet(widths=NARROW).state_dict() | {name: torch.tensor([px])}, tmp_path / "own.pth")
    with pytest.raises(UserError, match=rf"cells are {px:g} px wide \({name}\)"):
        load_network(tmp_path / "own.pth")


def test_weights_that_diverged_are_refused_before_a_run(tmp_path):
    torn = CellposeUNet(widths=NARROW)
    torn.diam_mean.data.fill_(torch.nan)
    torch.save(torn.state_dict(), tmp_path / "own.pth")
    card = {"widths": list(NARROW)}
    kept = weights.save_checkpoint(tmp_path / "own.safetensors", torn.state_dict(), unet.NAME, config=card)
    for path in (tmp_path / "own.pth", kept):
        with pytest.raises(UserError, match="its training diverged"):
            unet.check(unet.TrainSettings(base=str(path)))


def test_mask_rcnn_starts_from_a_narrow_network(drawn, narrow, tmp_path):
    train, val = drawn.select("train"), drawn.select("val")
    few = FEW | {"fpn_channels": 16, "score_threshold": 0.5, "nms_threshold": 0.5}
    made = maskrcnn.train(train, val, maskrcnn.TrainSettings(start=str(narrow), **few), tmp_path / "detector")
    assert weights.read_card(made).config["widths"] == [4, 8, 12, 16]
    start, kept = load_network(narrow)[0].state_dict(), weights.load_tensors(made)
    assert all(torch.equal(kept[f"backbone.unet.{name}"], value) for name, value in start.items())
    (found,) = maskrcnn.load(made)([drawn.image(0)])
    assert found.shape == (128, 128)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_a_doubled_convolution_is_the_convolution_of_the_doubled_picture(order):
    torch.manual_seed(0)
    convolution = torch.nn.Conv2d(3, 5, 3, padding=1).double().to(memory_format=order)
    x = torch.randn(2, 3, 6, 4, dtype=torch.float64).contiguous(memory_format=order).requires_grad_()
    plain = convolution(torch.nn.functional.interpolate(x, scale_factor=2, mode="nearest"))
    ours = doubled_convolution(x, convolution)
    assert ours.shape == (2, 5, 12, 8) and torch.allclose(ours, plain, atol=1e-12)
    assert ours.is_contiguous(memory_format=order)
    upstream = torch.randn_like(plain)
    inputs = (x, convolution.weight, convolution.bias)
    for mine, theirs in zip(*(torch.autograd.grad(y, inputs, upstream) for y in (ours, plain)), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-12)


def test_the_network_answers_as_the_published_one_that_doubles_first(monkeypatch):
    """With x doubled before each level, `_Up` goes the way of the levels that double nothing."""
    torch.manual_seed(0)
    network, x = CellposeUNet(widths=NARROW).eval(), torch.randn(1, 2, 32, 48)
    with torch.no_grad():
        ours = network(x)
        forward = _Up.forward

        def doubles_first(self, x, skip, style):
            scale = skip.shape[-1] // x.shape[-1]
            return forward(self, torch.nn.functional.interpolate(x, scale_factor=scale, mode="nearest"), skip, style)

        monkeypatch.setattr(_Up, "forward", doubles_first)
        assert torch.allclose(ours, network(x), atol=1e-5)


def way_back(network: CellposeUNet) -> tuple[set[str], int]:
    """Train one step; return the names of what moved, and how many numbers were kept for the way back."""
    before, kept = {key: value.clone() for key, value in network.state_dict().items()}, []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        loss = network.train()(torch.randn(2, 2, 32, 32)).square().mean()
    loss.backward()
    torch.optim.SGD([value for value in network.parameters() if value.requires_grad], lr=0.1).step()
    moved = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    return moved, sum(kept)


@pytest.mark.parametrize("levels", [4, 7, 8])
def test_frozen_levels_keep_their_weights_their_statistics_and_nothing_for_the_way_back(levels):
    names = [f"downsample.down.res_down_{k}." for k in range(4)] + [f"upsample.up.res_up_{k}." for k in (3, 2, 1, 0)]
    torch.manual_seed(0)
    network = CellposeUNet(widths=NARROW)
    whole, most = way_back(network)
    assert all(any(key.startswith(name) and "running_mean" in key for key in whole) for name in names)
    network.freeze(levels)
    moved, kept = way_back(network)
    assert not [key for key in moved if key.startswith(tuple(names[:levels]))]
    assert all(any(key.startswith(name) and "running_mean" in key for key in moved) for name in names[levels:])
    assert any(key.startswith("output.") for key in moved) and kept < {4: 0.6, 7: 0.35, 8: 0.1}[levels] * most


def test_fixed_norms_keep_their_means_and_variances_and_learn_the_rest():
    torch.manual_seed(0)
    network = CellposeUNet(widths=NARROW)
    network.freeze(0, fixed_norms=True)
    moved, _ = way_back(network)
    still = set(network.state_dict()) - moved
    assert still == {key for key in network.state_dict() if "running_" in key or "num_b" in key or "diam_" in key}
    network.freeze(0)
    assert any("running_mean" in key for key in way_back(network)[0])


def test_around_an_image_are_zeros_as_in_a_training():
    """A network that sums what it sees in 17 px tells what lies beyond the edge: nothing, on every side alike."""

    class Sum(torch.nn.Module):
        arithmetic = arithmetic("float32")
        diam_mean = torch.tensor([30.0])

        def forward(self, x):
            return torch.nn.functional.conv2d(x[:, 1:2], torch.ones(3, 1, 17, 17), padding=8)

    image = np.zeros((43, 50, 3), np.uint8)
    image[..., 2] = 100
    image[::2, :, 2] = 200
    maps = unet_maps.predict_maps(Sum(), image, 30.0)
    shown = two_channels(image)[1]
    assert maps.shape == (3, 43, 50)
    np.testing.assert_allclose(maps[0, 0, 0], shown[:9, :9].sum(), rtol=1e-3)
    np.testing.assert_allclose(maps[0, -1, -1], shown[-9:, -9:].sum(), rtol=1e-3)
