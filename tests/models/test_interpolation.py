"""Weights between base and tuned, and the choice of the step."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cellkit.models.interpolation import STEPS, best_step, interpolate, nested_steps, steps_between
from cellkit.models.weights import load_tensors, read_card, save_checkpoint

CONFIGS = {
    "base": {"from": "base", "cellprob_threshold": -1.0, "of_class": {"a": 0.2}, "shown": True},
    "tuned": {"from": "tuned", "cellprob_threshold": 1, "of_class": {"a": 0.4, "b": 1}, "shown": False},
}


@pytest.fixture
def ends(tmp_path):
    """Two states of a network with batch normalisation, trained apart by a step."""
    torch.manual_seed(0)
    network, paths = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3), torch.nn.BatchNorm2d(3)), []
    for name in ("base", "tuned"):
        network(torch.randn(4, 1, 8, 8) * 3 + 1)
        paths.append(save_checkpoint(tmp_path / f"{name}.safetensors", network.state_dict(), "x", config=CONFIGS[name]))
        with torch.no_grad():
            network[0].weight += 0.1
    return network, *paths


def test_the_ends_are_the_checkpoints_and_between_all_numbers_are_averaged(ends, tmp_path):
    network, base, tuned = ends
    ours, theirs = load_tensors(base), load_tensors(tuned)
    for step, wanted in ((0.0, ours), (1.0, theirs)):
        found = load_tensors(interpolate(base, tuned, step, tmp_path / "x.safetensors"))
        assert all(torch.equal(found[k], wanted[k]) for k in found if k != "1.num_batches_tracked")
    path = interpolate(base, tuned, 0.25, tmp_path / "x.safetensors")
    found = load_tensors(path)
    for name in ("0.weight", "1.running_mean", "1.running_var"):
        assert torch.allclose(found[name], 0.75 * ours[name] + 0.25 * theirs[name])
    assert int(found["1.num_batches_tracked"]) == 2 and (found["1.running_var"] > 0).all()
    card = read_card(path)
    assert card.config == {"from": "tuned", "cellprob_threshold": -0.5, "of_class": {"a": 0.25, "b": 1}, "shown": False}
    assert card.metrics["step_from_base"] == 0.25
    network.load_state_dict(found)
    assert torch.isfinite(network.eval()(torch.ones(1, 1, 8, 8))).all()


def test_where_weights_do_not_fit_the_ends_are_left(ends, tmp_path):
    _, base, tuned = ends
    assert steps_between(base, tuned) == STEPS and steps_between(None, tuned) == (1.0,)
    other = save_checkpoint(tmp_path / "other.safetensors", {"0.weight": torch.ones(2)}, "x")
    assert steps_between(other, tuned) == (0.0, 1.0) == steps_between(tmp_path / "base.pth", tuned)


def test_a_tie_prefers_the_smaller_step():
    assert best_step(np.array([[0.5, 0.5, 0.5]])) == 0 and best_step(np.array([[0.1, 0.5, 0.5]])) == 1


@given(arrays(float, (6, 5), elements=st.floats(0, 1)), st.integers(0, 5), st.floats(0, 1))
def test_an_image_does_not_choose_the_step_it_judges(scores, k, other):
    fold = np.array([0, 0, 1, 2, 3, 4])
    changed = scores.copy()
    changed[fold == fold[k]] = other * changed[fold == fold[k], ::-1]
    assert nested_steps(scores, fold)[k] == nested_steps(changed, fold)[k]
