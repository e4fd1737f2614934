"""A batch in parts is the step of the whole batch; what does not fit the memory is halved, then tiled, then refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cellkit.cells.instances import Instances
from cellkit.errors import UserError
from cellkit.machine import arithmetic
from cellkit.models.shared.flow_loss import FlowLoss, Prepared, prepare
from cellkit.models.shared.in_parts import InParts
from cellkit.models.training import Plan, fit


def item():
    labels, (y, x) = np.zeros((96, 96), np.int32), np.mgrid[:96, :96]
    for k, (row, column) in enumerate(((20, 24), (60, 40), (44, 76)), 1):
        labels[(y - row) ** 2 + (x - column) ** 2 < 14**2] = k
    image = np.repeat((60 + 100 * (labels > 0)).astype(np.uint8)[..., None], 3, axis=2)
    known = np.zeros(labels.shape, bool)
    known[:70] = True
    whole = prepare(image, Instances.from_labels(labels), 30.0)
    return Prepared(whole.planes, whole.target, known)


class Small(torch.nn.Module):
    """Two convolutions; it holds so many pixels at a time, and no more."""

    def __init__(self, most_px: float = np.inf):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(torch.nn.Conv2d(2, 8, 1), torch.nn.ReLU(), torch.nn.Conv2d(8, 3, 1))
        self.arithmetic, self.most_px, self.shapes = arithmetic("float32"), most_px, []

    def forward(self, x):
        self.shapes.append(tuple(x.shape))
        maps = self.layers(x)
        if len(x) * x.shape[2] * x.shape[3] > self.most_px:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return maps


def gradients(loss_at, step=0):
    network = loss_at.network
    network.zero_grad()
    loss = loss_at(step)
    if loss.requires_grad:
        loss.backward()
    return float(loss.detach()), [parameter.grad.clone() for parameter in network.parameters()]


def in_parts(most_px=np.inf, most=6, least_px=32):
    return InParts(FlowLoss(Small(most_px), [item()], 6, 64, 0), most, least_px, "use a larger machine")


@pytest.mark.parametrize("most", [1, 4, 6])
def test_the_parts_together_are_the_batch(most):
    whole = gradients(FlowLoss(Small(), [item()], 6, 64, 0), 3)
    parts = in_parts(most=most)
    loss, found = gradients(parts, 3)
    assert [shape[0] for shape in parts.network.shapes] == {1: [1] * 6, 4: [4, 2], 6: [6]}[most]
    assert loss == pytest.approx(whole[0], rel=1e-5)
    for ours, theirs in zip(found, whole[1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("fits_px", "most", "tile_px"), [(6 * 64**2, 6, 64), (3 * 64**2, 3, 64), (64**2, 1, 64), (32**2, 1, 32)]
)
def test_what_does_not_fit_is_halved_and_then_cut_into_tiles_and_the_step_stays_the_same(
    fits_px, most, tile_px, capsys
):
    whole = gradients(in_parts())
    parts = in_parts(fits_px)
    loss, found = gradients(parts)
    assert (parts.most, parts.tile_px) == (most, tile_px)
    assert loss == pytest.approx(whole[0], rel=1e-5)
    for ours, theirs in zip(found, whole[1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    tried = len(parts.network.shapes)
    gradients(parts, 1)
    assert len(parts.network.shapes) - tried == -(-6 // most) * (64 // tile_px) ** 2, "it does not try anew every step"
    assert capsys.readouterr().err.count("out of memory, so from here on") == {6: 0, 3: 1, 1: 3}[most] + (tile_px < 64)


def test_memory_for_nothing_is_an_error_that_says_what_to_do():
    with pytest.raises(UserError, match="does not hold one training tile of 32 px: CUDA out of memory.*\nuse a larger"):
        gradients(in_parts(100))


def test_a_training_that_runs_out_of_memory_ends_like_one_that_does_not(tmp_path):
    plan, ends = Plan(steps=6, eval_every=3, learning_rate=0.05, warmup_steps=1), []
    for most_px in (np.inf, 2 * 64**2):
        parts = in_parts(most_px)
        fit(parts.network, parts, lambda: 0.0, plan, tmp_path / str(most_px), "a", choose=False)
        ends.append(torch.cat([parameter.detach().flatten() for parameter in parts.network.parameters()]))
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-5)
    start = torch.cat([parameter.detach().flatten() for parameter in Small().parameters()])
    assert (ends[0] - start).abs().max() > 0.01


def test_where_nothing_is_known_there_is_nothing_to_learn():
    parts = in_parts()
    batch = parts.loss_at.batch
    parts.loss_at.batch = lambda step: batch(step)._replace(known=np.zeros((6, 64, 64), bool))
    assert float(parts(0)) == 0 and not parts.network.shapes
