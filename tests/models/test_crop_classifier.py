"""A class from a cut-out: what is cut, what is learned, and that outlines stay as they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cellkit.cells.instances import Instances
from cellkit.errors import UserError
from cellkit.models import crop_classifier as crops
from cellkit.models import weights

SMALL = {
    "crop_px": 48,
    "input_px": 48,
    "votes": "cut_outs",
    "batch_size": 12,
    "steps": 40,
    "eval_every": 20,
    "precision": "float32",
    "average_steps": 5,
}


@pytest.fixture(scope="module")
def learned(drawn, tmp_path_factory):
    config = crops.RecipeSettings(**SMALL)
    out = tmp_path_factory.mktemp("crops")
    return crops.train_crop_classifier(drawn.select("train"), drawn.select("val"), config, out)


def test_a_cut_out_is_around_the_middle_and_beyond_the_image_it_is_black():
    image = np.random.default_rng(0).integers(1, 255, (40, 30, 3), np.uint8)
    labels = np.zeros((40, 30), int)
    labels[0:3, 0:3], labels[20, 15] = 1, 2
    corner, middle = crops.cut_outs(image, Instances.from_labels(labels), 16, 16)
    assert (
        np.array_equal(middle[..., :3], image[12:28, 7:23]) and middle[8, 8, 3] == 255 and middle[..., 3].sum() == 255
    )
    assert not corner[:7].any() and not corner[:, :7].any() and np.array_equal(corner[7:, 7:, :3], image[:9, :9])
    assert (corner[..., 3] > 0).sum() == 9
    assert crops.cut_outs(image, Instances.empty((40, 30)), 16, 8).shape == (0, 8, 8, 4)


def test_eight_views_are_all_different_and_hold_the_same_pixels():
    planes = np.random.default_rng(0).normal(size=(3, 6, 6))
    views = [crops.view_of(planes, k) for k in range(8)]
    assert len({view.tobytes() for view in views}) == 8
    assert all(np.array_equal(np.sort(view.ravel()), np.sort(planes.ravel())) for view in views)
    assert np.array_equal(views[0], planes)


def test_what_is_shown_does_not_depend_on_the_exposure_alone():
    cut = np.random.default_rng(0).integers(0, 100, (8, 8, 4), np.uint8)
    plain = crops.shown(cut, np.array([[10, 10], [90, 90]], np.float32), True)
    brighter = crops.shown(cut * np.uint8(2), np.array([[20, 20], [180, 180]], np.float32), True)
    assert np.allclose(plain[3:5], brighter[3:5], atol=1e-5) and not np.allclose(plain[:3], brighter[:3])
    assert not crops.shown(cut, np.zeros((2, 2), np.float32), False)[5].any()


def test_it_tells_the_drawn_lines_apart_and_leaves_outlines_alone(learned, drawn):
    namer, val = crops.crop_namer(learned), drawn.held_out()
    named = [namer(*val[k]) for k in range(len(val))]
    right = np.concatenate([x.class_ids == y.class_ids for x, y in zip(named, val.instances, strict=True)])
    assert right.mean() > 0.8
    assert named[0].with_classes(val.instances[0].class_ids) == val.instances[0]
    assert namer(val.image(0), Instances.empty((128, 128))) == Instances.empty((128, 128))
    one = np.zeros((128, 128), int)
    one[0, 127] = 1
    assert len(namer(np.zeros((128, 128, 3), np.uint8), Instances.from_labels(one))) == 1
    metrics = weights.read_card(learned).metrics
    assert metrics["cells"].keys() == {"HEK", "N2a"} and metrics["chosen_by"] == []


def test_opening_a_classifier_leaves_what_is_drawn_after_it_as_it_was(learned):
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    crops.crop_namer(learned)
    assert torch.equal(torch.rand(3), wanted)


def test_a_folder_to_be_judged_by_trains_nothing_again(learned, drawn, tmp_path, monkeypatch):
    def step(*_):
        raise AssertionError("a step was taken")

    monkeypatch.setattr(crops.CropLoss, "__call__", step)
    config = crops.RecipeSettings(**SMALL, test_folder="elsewhere")
    before = weights.load_tensors(learned)
    again = crops.train_crop_classifier(drawn.select("train"), drawn.select("val"), config, learned.parent)
    after = weights.load_tensors(again)
    assert all(torch.equal(before[name], after[name]) for name in before)
    changed = config.model_copy(update={"input_px": 32})
    with pytest.raises(AssertionError, match="a step was taken"):
        crops.train_crop_classifier(drawn.select("train"), drawn.select("val"), changed, learned.parent)


def test_cells_of_unknown_class_and_small_ones_do_not_teach(drawn):
    train = drawn.select("train")
    some = [cells.with_classes(np.r_[0, cells.class_ids[1:]]) for cells in train.instances]
    known = crops._known(some[0], crops.Settings(min_area_px=10**6))
    assert not len(known) and len(crops._known(some[0], crops.Settings())) == len(some[0]) - 1


def test_without_a_cell_of_every_class_there_is_nothing_to_learn(drawn, tmp_path):
    with pytest.raises(UserError, match="no training cell of HEK, N2a"):
        too_large = crops.Settings(**SMALL, min_area_px=10**6)
        crops.train_crop_classifier(drawn.select("train"), drawn.select("val"), too_large, tmp_path)
    alone = drawn.select("train", "HEK")
    with pytest.raises(UserError, match="no training cell of N2a"):
        crops.train_crop_classifier(alone, drawn.select("val"), crops.Settings(**SMALL), tmp_path)
