"""Crops and their loss: what is not known counts nothing, batches follow from the step number, images are cut without a copy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cellkit.cells.instances import Instances
from cellkit.errors import UserError
from cellkit.models import cellpose_unet as unet
from cellkit.models import unet_batches
from cellkit.models.shared.flow_loss import FlowLoss, Prepared, Variation, crop, flow_loss, prepare
from cellkit.models.shared.flows import target_of
from cellkit.models.shared.inputs import vary, vary_strongly
from cellkit.models.unet_network import CellposeUNet


def discs(side: int = 96) -> np.ndarray:
    labels, (y, x) = np.zeros((side, side), np.int32), np.mgrid[:side, :side]
    for k, (row, column) in enumerate(((20, 24), (60, 40), (44, 76)), 1):
        labels[(y - row) ** 2 + (x - column) ** 2 < 14**2] = k
    return labels


LABELS = discs()
ITEM = Prepared(np.random.default_rng(0).random((2, 96, 96), np.float32), target_of(LABELS))


def item_with(known: np.ndarray) -> Prepared:
    return Prepared(ITEM.planes, ITEM.target, known)


def test_the_views_of_an_image_are_of_the_one_array_that_crops_are_cut_from():
    item = item_with(np.ones((96, 96), bool))
    assert item.together.shape == (96, 96, 6) and item.together.flags.c_contiguous
    assert np.shares_memory(item.planes, item.together) and np.shares_memory(item.target, item.together)
    assert np.array_equal(item.target, target_of(LABELS)) and len(item.arrays) == 3 and len(ITEM.arrays) == 2


def test_known_turns_with_the_crop_and_what_is_beyond_the_image_is_not_known_where_it_does_not_count():
    known = np.zeros((96, 96), bool)
    known[:, :48] = True
    for seed in range(6):
        marked = Prepared(np.stack([known, np.ones_like(known)]).astype(np.float32), ITEM.target, known)
        made = crop(marked, np.random.default_rng(seed), 128, Variation(outside=False))
        plain = crop(item_with(known), np.random.default_rng(seed), 128)
        assert np.array_equal(made.target, plain.target) and not (made.known & ~plain.known).any()
        cut = crop(ITEM, np.random.default_rng(seed), 128, Variation(outside=False)).known
        assert 0.1 < cut.mean() < 0.99, "the crop is larger than the image"
        assert np.array_equal(made.known, cut & plain.known)
        assert not made.target[2][~cut].any(), "no cell there"
    assert crop(ITEM, np.random.default_rng(0), 128).known is None


def test_a_crop_that_lies_in_its_image_is_known_all_over():
    large = Prepared(np.zeros((2, 400, 400), np.float32), np.zeros((3, 400, 400), np.float32))
    shares = [crop(large, np.random.default_rng(k), 64, Variation(outside=False)).known.mean() for k in range(20)]
    assert np.median(shares) == 1


@pytest.mark.parametrize("seed", range(3))
def test_without_rotation_flows_keep_their_axes_and_the_place_is_the_same(seed):
    upright = crop(ITEM, np.random.default_rng(seed), 96, Variation(rotate=False))
    cells = upright.target[2] > 0
    again = target_of(discs_of(cells))
    both = (again[2] > 0) & cells
    assert ((upright.target[:2] * again[:2]).sum(axis=0)[both] / 25).mean() > 0.7
    turned = crop(ITEM, np.random.default_rng(seed), 96)
    assert not np.array_equal(turned.target, upright.target)


def discs_of(cells: np.ndarray) -> np.ndarray:
    from scipy.ndimage import label

    return label(cells)[0].astype(np.int32)


def test_where_all_is_known_the_loss_is_cellposes_and_what_is_not_known_changes_nothing():
    rng = torch.Generator().manual_seed(0)
    maps, target = torch.randn(2, 3, 8, 8, generator=rng), torch.rand(2, 3, 8, 8, generator=rng).round()
    everywhere = torch.ones(2, 8, 8, dtype=torch.bool)
    assert torch.allclose(flow_loss(maps, target, everywhere), flow_loss(maps, target), atol=1e-6)
    known = everywhere.clone()
    known[:, :, 4:] = False
    loss = flow_loss(maps, target, known)
    assert torch.allclose(loss, flow_loss(maps[..., :4], target[..., :4]), atol=1e-6)
    maps.requires_grad_()
    flow_loss(maps, target, known).backward()
    assert not maps.grad[..., 4:].any() and maps.grad[..., :4].all()
    assert float(flow_loss(maps, target, ~everywhere).detach()) == 0


def test_the_batch_drawn_in_the_background_is_the_batch_of_its_step():
    network = CellposeUNet(widths=(4, 8, 12, 16))
    other = Prepared(ITEM.planes + 1, ITEM.target)
    made = FlowLoss(network, [ITEM, other], 3, 32, 5)
    losses = [float(made(step).detach()) for step in (0, 1, 2)]
    fresh = [float(FlowLoss(network, [ITEM, other], 3, 32, 5)(step).detach()) for step in (2, 0, 1)]
    assert losses == [fresh[1], fresh[2], fresh[0]] and len(set(losses)) == 3
    assert float(made(0).detach()) == losses[0], "a step that was not expected"


def test_a_share_of_each_batch_is_replayed_and_the_others_are_as_without():
    items = [Prepared(np.full_like(ITEM.planes, k), ITEM.target) for k in range(1, 5)]
    source = [Prepared(np.full_like(ITEM.planes, 9), ITEM.target)]
    with_source = FlowLoss(None, items, 8, 32, 0, replay=source, replay_share=0.2)
    without = FlowLoss(None, items, 8, 32, 0)
    counts = []
    for step in range(200):
        chosen = list(with_source.choose(np.random.default_rng([0, step])))
        replayed = [item is source[0] for item in chosen]
        counts.append(sum(replayed))
        plain = list(without.choose(np.random.default_rng([0, step])))
        assert all(a is b for a, b, new in zip(chosen, plain, replayed, strict=True) if not new)
    assert set(counts) == {1, 2} and np.mean(counts) == pytest.approx(1.6, abs=0.1)


@pytest.mark.parametrize("varied", [vary, vary_strongly])
def test_intensities_vary_and_an_empty_channel_stays_empty(varied):
    planes = np.stack([np.zeros((32, 32)), np.random.default_rng(0).random((32, 32))]).astype(np.float32)
    before = planes.copy()
    made = [varied(planes, np.random.default_rng(seed)) for seed in range(40)]
    assert np.array_equal(planes, before) and not any(one[0].any() for one in made)
    assert all(np.isfinite(one).all() and one.dtype == np.float32 for one in made)
    assert np.array_equal(made[3], varied(planes, np.random.default_rng(3)))
    against = sum(np.corrcoef(one[1].ravel(), before[1].ravel())[0, 1] < 0 for one in made)
    assert (against > 0) == (varied is vary_strongly), "only the strong one inverts"


def test_prepare_brings_what_is_known_to_the_scale_of_the_network():
    labels = LABELS.copy()
    labels[48:][labels[48:] == 0] = -1
    item = prepare(np.zeros((96, 96, 3), np.uint8), Instances.from_labels(labels), 15.0)
    assert item.known.shape == (192, 192) and item.known[:96].all()
    assert np.array_equal(item.known[96:], item.target[2, 96:] > 0), "a labelled cell is known"
    assert np.array_equal(item.target, target_of(np.kron(LABELS, np.ones((2, 2), np.int32)))), (
        "the cells stay as they are"
    )
    assert prepare(np.zeros((96, 96, 3), np.uint8), Instances.from_labels(LABELS), 15.0).known is None


def test_beyond_the_image_is_background_also_where_its_picture_is_known_in_part():
    item = item_with(np.zeros((96, 96), bool))
    counted, left_out = (
        crop(item, np.random.default_rng(3), 128, Variation(outside=outside)) for outside in (True, False)
    )
    beyond = ~crop(ITEM, np.random.default_rng(3), 128, Variation(outside=False)).known
    assert np.array_equal(counted.known, beyond) and beyond.any() and not left_out.known.any()


class Killed(BaseException):
    pass


RECIPES = {
    "average": {"average_steps": 3},
    "frozen": {"frozen_levels": 4, "replay_share": 0.5},
    "fixed norms": {"fixed_norms": True},
    "varied": {
        "rotate": False,
        "intensities": "strong",
        "outside_counts": False,
        "hold_share": 0.5,
        "warmup_share": 0.1,
    },
}


def test_drawn_fields_are_replayed_where_a_share_is_set(drawn, monkeypatch):
    monkeypatch.setattr(unet_batches, "REPLAYED", 1)
    few = {"base": "scratch", "batch_size": 2, "crop_px": 64}
    train = drawn.select("train").subset([0])
    read = {**unet.DEFAULTS, "diameter_px": 30.0}
    loss = unet_batches.loss_of(train, unet.TrainSettings(**few, replay_share=0.5), read)
    assert len(loss.replay) == 6 and len(loss.items) == 1 and loss.replay_share == 0.5
    assert any(item.planes[0].any() and item.planes[1].any() for item in loss.replay), "both channels are shown"
    assert not unet_batches.loss_of(train, unet.TrainSettings(**few), read).replay


def test_levels_of_random_weights_are_not_frozen(drawn):
    with pytest.raises(UserError, match="random weights would stay"):
        unet.check(unet.TrainSettings(base="scratch", frozen_levels=4))


def test_a_training_from_scratch_learns_what_norms_divide_by_and_one_from_a_base_keeps_it(drawn, narrow_start):
    read, few = {**unet.DEFAULTS, "diameter_px": 30.0}, {"batch_size": 2, "crop_px": 64, "fixed_norms": True}
    train = drawn.select("train").subset([0])
    for base, fixed in (("scratch", False), (str(narrow_start), True)):
        assert unet_batches.loss_of(train, unet.TrainSettings(base=base, **few), read).network.fixed_norms is fixed


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_training_killed_and_repeated_leaves_the_same_bytes(drawn, tmp_path, monkeypatch, narrow_start, recipe):
    monkeypatch.setattr("cellkit.models.training.SAVE_EVERY_S", -1.0)
    monkeypatch.setattr(unet_batches, "REPLAYED", 1)
    few = {"steps": 4, "batch_size": 2, "crop_px": 64, "eval_every": 4, "val_images": 1, "base": str(narrow_start)}
    config = unet.TrainSettings(**few, flow_threshold=0.4, cellprob_threshold=0.0, **recipe)
    train, val = drawn.select("train").subset([0, 1]), drawn.select("val")
    whole = unet.train(train, val, config, tmp_path / "whole").read_bytes()
    batch, call = FlowLoss.batch, FlowLoss.__call__

    def dies(self, step):
        if step == 2:
            raise Killed
        return call(self, step)

    monkeypatch.setattr(FlowLoss, "__call__", dies)
    with pytest.raises(Killed):
        unet.train(train, val, config, tmp_path / "killed")
    monkeypatch.setattr(FlowLoss, "__call__", call)
    taken = []
    monkeypatch.setattr(FlowLoss, "batch", lambda self, step: taken.append(step) or batch(self, step))
    assert unet.train(train, val, config, tmp_path / "killed").read_bytes() == whole
    assert min(taken) == 2, "it went on where it was"
