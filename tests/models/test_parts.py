"""Parts of the training images, held back in turn: each by one network, which together answer as their mean."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from backend_cases import config_of
from hypothesis import given
from hypothesis import strategies as st

from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.errors import UserError
from cellkit.models import coordinate, unet_border, weights
from cellkit.models.border_network import load_network
from cellkit.models.coordinate_network import Together, built
from cellkit.models.shared.parts import held_parts, history_of, train_parts
from cellkit.models.training_state import History, read_history


def images(groups) -> CellDataset:
    records = [ImageRecord(str(k), "", 4, 4, group=f"g{group}") for k, group in enumerate(groups)]
    return CellDataset(records, [Instances.empty((4, 4))] * len(records))


@given(st.lists(st.integers(0, 8), min_size=1, max_size=20), st.integers(1, 5))
def test_every_image_is_left_out_by_one_network_and_no_group_is_divided(groups, parts):
    held = held_parts(images(groups), parts, 0)
    assert len(held) == max(min(parts, len(set(groups))), 1)
    assert held.sum(axis=0).tolist() == [int(len(held) > 1)] * len(groups)
    assert len(held) == 1 or held.any(axis=1).all()
    for group in set(groups):
        assert len(np.unique(held[:, np.array(groups) == group], axis=1).T) == 1


def test_a_mean_history_has_the_mean_of_those_that_came_so_far(tmp_path):
    rows = [{"step": step, "loss": loss, "score": 0.5, "seconds": 1.0} for step, loss in ((0, math.nan), (2, 1.0))]
    longer = [*rows, {"step": 4, "loss": 0.5, "score": 0.7, "seconds": 2.0}]
    paths = [
        History(rows, 2, 0.5, "steps done").write(tmp_path / "a.csv"),
        History(longer, 4, 0.7).write(tmp_path / "b.csv"),
    ]
    mean = history_of([read_history(path) for path in [paths[0], *paths]])
    assert [(row["step"], row["loss"]) for row in mean.rows[1:]] == [(2, 1.0), (4, 0.5)] and mean.best_step == 2
    assert mean.best_score == pytest.approx((0.5 + 0.5 + 0.7) / 3)


def test_images_that_cannot_be_parted_are_refused(tmp_path):
    with pytest.raises(
        UserError, match="1 training image or group of images, and 3 parts: none can be left out\ngive two"
    ):
        train_parts(None, images([1, 1, 1]), SimpleNamespace(parts=3, seed=0), tmp_path)


def test_networks_with_a_border_are_joined_and_answer_by_the_mean_of_their_probabilities(drawn, tmp_path):
    config = config_of("unet_border").model_copy(update={"diameter_px": 30.0})
    teach = drawn.select("train")
    one, two = (
        unet_border.train(teach, teach.subset([]), config.model_copy(update={"seed": seed}), tmp_path / str(seed))
        for seed in (1, 2)
    )
    both = unet_border.together([one, two], tmp_path)
    planes = torch.rand(1, 2, 64, 64)
    with torch.no_grad():
        each = [load_network(path, "unet_border", "float32")[0](planes).softmax(dim=1) for path in (one, two)]
        mean = load_network(both, "unet_border", "float32")[0](planes).exp()
    assert not torch.allclose(*each) and torch.allclose(mean, sum(each) / 2, atol=1e-6)
    assert weights.read_card(both).config["networks"] == 2
    (found,) = unet_border.load(both)([drawn.image(0)])
    assert found == unet_border.live(both).look(drawn.image(0))({}, None, False).cells
    other = unet_border.train(
        teach, teach.subset([]), config.model_copy(update={"diameter_px": 20.0}), tmp_path / "other"
    )
    with pytest.raises(UserError, match="built or read differently"):
        unet_border.together([one, other], tmp_path / "no")


def test_coordinates_are_asked_of_several_networks_and_thresholds_chosen_by_images_they_did_not_see(drawn, tmp_path):
    networks = [built(seed, "float32").eval() for seed in range(2)]
    planes = torch.rand(1, 2, 32, 32)
    with torch.no_grad():
        each = [network.map(planes).sigmoid() for network in networks]
        mean = Together(networks).map(planes).sigmoid()
    assert torch.allclose(mean, sum(each) / 2, atol=1e-6)
    train, val = drawn.select("train"), drawn.select("val")
    checkpoint = coordinate.train(train, val, config_of("coordinate").model_copy(update={"parts": 2}), tmp_path)
    assert weights.read_card(checkpoint).metrics["networks"] == 2
    assert (tmp_path / "part_1/history.csv").is_file() and (tmp_path / "history.csv").is_file()
    assert coordinate.steps_of(config_of("coordinate"), 1) == 2 and len(list(coordinate.load(checkpoint)(val.images())))
