"""The Cellpose U-Net: published checkpoints, flows, thresholds, and the shipped weights."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from backend_cases import EMPTY, config_of, history_of
from conftest import write_png

from cellkit import machine
from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.errors import UserError
from cellkit.fetch.find import find_weights
from cellkit.models import cellpose_unet as unet
from cellkit.models import maskrcnn_torchvision as maskrcnn
from cellkit.models import unet_search, weights
from cellkit.models.shared import diameter, fine_tuning, flow_loss, flows, inputs, threshold_search
from cellkit.models.shared.inputs import random_warp
from cellkit.models.unet_network import CellposeUNet, load_network
from cellkit.scores.iou import overlaps
from cellkit.scores.kaggle import kaggle

# ---- cellpose_unet -------------------------------------------------------------------------------------------------


def test_names_and_shapes_are_those_of_the_published_checkpoints():
    shapes = {name: tuple(value.shape) for name, value in CellposeUNet().state_dict().items()}
    assert shapes["downsample.down.res_down_0.conv.conv_0.2.weight"] == (32, 2, 3, 3)
    assert shapes["downsample.down.res_down_3.proj.1.weight"] == (256, 128, 1, 1)
    assert shapes["upsample.up.res_up_0.conv.conv_1.full.weight"] == (32, 256)
    assert shapes["output.2.weight"] == (3, 32, 1, 1) and shapes["diam_mean"] == (1,)
    assert sum(np.prod(s, dtype=int) for n, s in shapes.items() if "running" not in n and "num_b" not in n) == 6_600_845


def test_published_torch_checkpoint_loads(tmp_path):
    torch.manual_seed(1)
    network = CellposeUNet()
    torch.save({f"module.{k}": v for k, v in network.state_dict().items()}, tmp_path / "cyto9")
    loaded, config = load_network(tmp_path / "cyto9")
    assert config == {} and all(
        torch.equal(a, b) for a, b in zip(network.parameters(), loaded.parameters(), strict=True)
    )


def test_pickle_is_refused(tmp_path):
    import pickle

    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"a": print}))
    with pytest.raises(UserError, match="no checkpoint that can be opened safely"):
        load_network(tmp_path / "evil.pth")


def test_another_network_is_refused(tmp_path):
    torch.save({"encoder.patch_embed.weight": torch.zeros(1), "W2": torch.zeros(1)}, tmp_path / "cpsam")
    with pytest.raises(UserError, match="Cellpose-SAM"):
        load_network(tmp_path / "cpsam")


def test_channels_are_scaled_and_an_empty_one_stays_empty():
    image = np.zeros((50, 50, 3), np.uint8)
    image[..., 2] = np.linspace(10, 110, 50).astype(np.uint8)
    planes = inputs.two_channels(image)
    assert not planes[0].any() and planes[1].min() < 0.01 and planes[1].max() > 0.99
    assert not inputs.two_channels(image, "cytoplasm").any()


def test_target_points_to_the_middle():
    labels = np.zeros((40, 40), np.int32)
    cv2.circle(labels, (20, 20), 12, 1, -1)
    target = flows.target_of(labels)
    assert target[0, 10, 20] > 4.5 and target[0, 30, 20] < -4.5  # flow y: down above the middle, up below it
    assert target[1, 20, 10] > 4.5 and target[1, 20, 30] < -4.5
    assert np.array_equal(target[2] > 0, labels > 0)


@pytest.mark.parametrize("diameter_px", [20.0, 30.0, 60.0])
def test_ceiling_decode_of_encode(drawn, diameter_px, tmp_path):
    """Labels -> network scale -> flows -> masks -> labels loses almost nothing, at any cell size."""
    config = config_of("cellpose_unet")
    factor = diameter_px / diameter.diameter_of(drawn.instances)
    size = round(128 * factor)
    labels = cv2.resize(drawn.instances[0].paint().astype(float), (size, size), interpolation=cv2.INTER_NEAREST_EXACT)
    truth = Instances.from_labels(labels.astype(np.int32))
    record = ImageRecord("a", "a.png", size, size)
    write_png(tmp_path / "a.png", np.zeros((size, size, 3), np.uint8))
    assert unet.ceiling(CellDataset([record], [truth], (), tmp_path, [1]), config) > 0.8  # labels enlarged in steps


@pytest.mark.parametrize("share", [0.42, 0.8, 1.0])
def test_a_cell_may_cover_the_image(share):
    """Cellpose's own rule drops cells above 40 % of the image."""
    yy, xx = np.mgrid[:96, :96]
    labels = (np.maximum(abs(yy - 47.5), abs(xx - 47.5)) <= np.sqrt(share) * 48).astype(np.int32)
    truth = Instances.from_labels(labels)
    maps = flow_loss.prepare(np.zeros((96, 96, 3), np.uint8), truth, diameter.diameter_of([truth])).target.copy()
    maps[2] = np.where(maps[2] > 0, 6, -6)
    (found,) = [flows.masks_of(maps, (96, 96), flow_threshold=0.4, cellprob_threshold=0.0, min_area_px=15)]
    assert len(found) == 1 and overlaps(truth, found).shared_px[0] > 0.95 * labels.sum()


def test_a_cell_far_longer_than_others_stays_whole_and_others_are_cellposes(drawn):
    """Cellpose takes 200 steps of a pixel: what begins farther from the middle of its cell does not get there."""
    from cellpose import dynamics

    labels = np.zeros((24, 560), np.int32)
    labels[4:8, 20:540], labels[11:21, 300:310] = 1, 2
    target = np.zeros((3, *labels.shape), np.float32)
    target[2] = np.where(labels > 0, 6, -6)
    for k, (y, x) in ((1, (5.5, 279.5)), (2, (15.5, 304.5))):  # perfect flows: to the middle
        dy, dx = (axis - middle for axis, middle in zip(np.mgrid[:24, :560], (y, x), strict=True))
        own = (labels == k) / np.maximum(np.hypot(dy, dx), 0.5)
        target[:2] -= 5 * np.stack([dy, dx]) * own
    settings = {"cellprob_threshold": 0.0, "flow_threshold": 0.0}
    with torch.sparse.check_sparse_tensor_invariants(enable=False):
        cut = dynamics.compute_masks(target[:2], target[2], niter=200, **settings)
    assert (cut[4:8, 20:540] == 0).any(), "else the case is none"
    found = flows.masks_of(target, labels.shape, **settings, min_area_px=15)
    assert found.areas_px.tolist() == [4 * 520, 100]
    maps = flow_loss.prepare(np.zeros((128, 128, 3), np.uint8), drawn.instances[0], 24.0).target  # as before
    settings = {"cellprob_threshold": 0.5, "flow_threshold": 0.4}
    with torch.sparse.check_sparse_tensor_invariants(enable=False):
        theirs = dynamics.compute_masks(maps[:2], maps[2], niter=200, max_size_fraction=1.0, **settings)
    ours = flows.follow(maps, 0.5)
    ours = flows.without(ours, flows.flow_errors(ours, maps) > 0.4)
    assert ours.any() and np.array_equal(ours, theirs)


def test_labelled_cells_below_the_least_area_are_told_before_training(drawn, capsys):
    config = config_of("cellpose_unet", min_area_px=300)
    small = sum(int((x.areas_px < 300).sum()) for x in drawn.instances)
    unet.ceiling(drawn, config, most=1)
    assert f"finetune.min_area_px = 300 px: {small} of " in capsys.readouterr().err and small
    for backend, section in ((unet, "finetune"), (maskrcnn, "maskrcnn")):
        huge = config_of(backend.NAME, min_area_px=10**6)
        with pytest.raises(UserError, match=rf"{section}.min_area_px is 1000000, and the largest of"):
            backend.train(drawn.select("train"), drawn.select("val"), huge, drawn.root / "never")


class Silent(torch.nn.Module):
    """A network that sees no cell anywhere."""

    diam_mean = diam_labels = torch.tensor([30.0])
    arithmetic = machine.arithmetic()

    def forward(self, x):
        return torch.full((len(x), 3, *x.shape[2:]), -6.0)


def test_a_base_that_finds_nothing_is_told_and_no_threshold_searched(drawn, capsys):
    settings = {**unet.DEFAULTS, "diameter_px": 30.0}
    pairs = [drawn[0], drawn[1]]
    scorer = unet.Scorer(Silent(), pairs, settings, "starter")
    assert scorer() == scorer() == 0
    told = capsys.readouterr().err
    assert told.count("before training, starter finds no cell in 2 validation images") == 1
    assert "finetune.base" in told and "finetune.diameter_px (now 30)" in told
    found = unet_search.search_settings(Silent(), pairs, settings, ("flow_threshold", "min_area_px"))
    assert found == ({"flow_threshold": 0.4, "min_area_px": 15}, {})
    told = capsys.readouterr().err
    assert "the network finds no cell in 2 training images, so nothing is searched. Try another base" in told
    image, truth = drawn[1]
    assert unet_search.search_settings(Silent(), [drawn[0], (image, truth[:0])], settings, ("flow_threshold",))[1] == {}
    assert "so nothing is searched" in capsys.readouterr().err, "an image without cells is no hope"


def test_a_base_that_is_never_right_is_read_at_two_thresholds_with_the_flow_check_off(drawn, monkeypatch, capsys):
    maps = np.zeros((3, 32, 32), np.float32)
    maps[2] = 6.0
    read = []

    def nothing(maps, truth, *thresholds):
        read.append(thresholds)
        return np.zeros([len(values) for values in thresholds])

    monkeypatch.setattr(unet_search, "predict_maps", lambda *args: maps)
    monkeypatch.setattr(threshold_search, "score_maps", nothing)
    settings = {**unet.DEFAULTS, "diameter_px": 30.0}
    searched = ("flow_threshold", "cellprob_threshold")
    found = unet_search.search_settings(None, [drawn[0]], settings, searched)
    assert found == ({"flow_threshold": 0.4, "cellprob_threshold": 0.0}, {})
    assert read == [((0.0,), (0.0,), (0,)), ((0.0,), (-2.0,), (0,))]
    told = capsys.readouterr().err
    assert "the network finds no cell right in 1 training image, so nothing is searched" in told
    assert "finetune.base: cyto3), finetune.diameter_px (now 30) or finetune.channels" in told


@pytest.mark.parametrize(("logit", "hopeless"), [(1.0, False), (-1.0, False), (-2.5, True)])
def test_a_base_is_hopeless_where_the_lowest_threshold_finds_nothing_right_either(logit, hopeless):
    """A cell whose logits lie below the default threshold is right at -2."""
    labels = np.zeros((40, 40), np.int32)
    labels[8:28, 8:28] = 1
    maps = flows.target_of(labels)
    maps[2] = np.where(labels, logit, -6)
    pairs = [(maps, Instances.from_labels(labels))]
    assert bool(threshold_search._hopeless(pairs, threshold_search.THRESHOLDS, lambda image: image)) == hopeless


def test_thresholds_are_searched_on_as_many_images_as_set(drawn, tmp_path):
    config = config_of("cellpose_unet", base=str(find_weights("starter_light")), search_images=2, min_area_px=None)
    card = weights.read_card(unet.calibrate(drawn, config, tmp_path / "base"))
    assert len(drawn) > 2 and card.metrics["searched"]["images"] == 2


def test_the_history_begins_with_the_score_of_the_base(drawn, tmp_path):
    config = config_of(
        "cellpose_unet",
        base=str(find_weights("starter")),
        steps=1,
        eval_every=1,
        cellprob_threshold=None,
        min_area_px=None,
        diameter_px=30.0,
    )
    tuned = unet.train(drawn.subset([0]), drawn.select("val"), config, tmp_path)
    card = weights.read_card(tuned)
    base_card = weights.read_card(find_weights("starter"))
    assert card.licence == f"of your images, and of starter, from which it began: {base_card.licence}"
    read_at = card.metrics["read_at"]
    assert read_at == {"diameter_of": "batch", "flow_threshold": 0.4, "cellprob_threshold": 0.0, "min_area_px": 15}
    val = drawn.select("val").subset([0])
    base = unet.load(find_weights("starter"), unet.Settings(diameter_px=30.0, **read_at))
    (found,) = base(val.images())
    score = kaggle([overlaps(val.instances[0], found)], bootstrap=0)["score"]
    assert history_of(tuned)[0]["score"] == pytest.approx(score, abs=1e-6) and score > 0.3


def test_crop_turns_flows_with_the_image(drawn):
    """Flows of a turned crop point where the flows of the turned labels point."""
    target = flows.target_of(drawn.instances[0].paint())
    item = flow_loss.Prepared(np.zeros((2, 128, 128), np.float32), target)
    for seed in range(4):
        turned = flow_loss.crop(item, np.random.default_rng(seed), 96).target
        warp, _ = random_warp(target[2], np.random.default_rng(seed), 96)
        labels = cv2.warpAffine(drawn.instances[0].paint().astype(float), warp, (96, 96), flags=cv2.INTER_NEAREST)
        again = flows.target_of(labels.astype(np.int32))
        both = (again[2] > 0) & (turned[2] > 0)
        assert ((turned[:2] * again[:2]).sum(axis=0)[both] / 25).mean() > 0.7


# ---- the shipped weights -------------------------------------------------------------------------------------------


def test_starter_weights_find_drawn_cells_they_were_not_trained_on(drawn):
    """Fields of other seeds than the training's; also the shipped bytes are those of the card."""
    path = find_weights("starter")
    assert path.stat().st_size <= 14e6 and "CC0" in weights.read_card(path).licence
    segment = unet.load(path, unet.Settings(diameter_px=diameter.diameter_of(drawn.instances)))
    pairs = [overlaps(truth, found) for truth, found in zip(drawn.instances, segment(drawn.images()), strict=True)]
    assert kaggle(pairs, bootstrap=0)["by_threshold"]["0.50"] > 0.6


def test_empty_channels_and_empty_validation_images_are_refused_or_said(drawn, capsys):
    train = drawn.select("train")
    with pytest.raises(
        UserError, match=r"3 training images, none with anything in what .* nuclei \(blue\)\nshow it .*channels"
    ):
        inputs.refuse_empty([np.zeros((1, 4, 4))] * 3, train, inputs.SHOWN["nuclei"], "finetune.channels")
    inputs.refuse_empty([np.zeros((1, 4, 4)), *[np.ones((1, 4, 4))] * 2], train, "nuclei (blue)", "finetune.channels")
    assert (
        f"empty in nuclei (blue): 1 of 3 training images, e.g. {train.records[0].image_id}" in capsys.readouterr().err
    )
    green = EMPTY.copy()
    green[3, 3, 1] = 9
    elsewhere = [inputs.lies_elsewhere(green, channels) for channels in ("nuclei", "cytoplasm", "both")]
    assert elsewhere == [True, False, False] and not inputs.lies_elsewhere(EMPTY, "nuclei"), (
        "a black picture is a picture"
    )
    assert fine_tuning.scored_along(drawn.select("val")) == ([0, 1], False) and capsys.readouterr().err == ""
    many = [ImageRecord(str(k), f"{k}.png", 8, 8, split="val") for k in range(40)]
    cells = [Instances.from_labels(np.eye(8, dtype=np.int32)), *[Instances.empty((8, 8))] * 39]
    for found, choosing in ((cells[:1] * 40, True), (cells[1:2] * 40, False)):
        data = CellDataset(many, found, (), None, list(range(40)))
        assert fine_tuning.scored_along(data)[1] is choosing
        assert ("without any labelled cell" in capsys.readouterr().err) is not choosing


def test_noise_stretched_to_full_contrast_is_told_from_a_picture(drawn):
    noise = np.random.default_rng(0).normal(10, 3, (200, 200, 3)).clip(0, 255).astype(np.uint8)
    sparse = noise.copy()
    sparse[90:105, 90:105] = 200
    assert inputs.only_noise(noise) and inputs.only_noise(sparse), "cells on less than 1 % do not set the percentiles"
    assert not any(inputs.only_noise(drawn.image(k), channels) for k in range(6) for channels in ("both", "nuclei"))
    assert not inputs.only_noise(EMPTY) and not inputs.only_noise(EMPTY[:1, :1])
    ramp = np.repeat(np.linspace(10, 90, 200).astype(np.uint8)[None, :, None], 200, axis=0).repeat(3, axis=2)
    assert not inputs.only_noise(ramp), "uneven light is no noise"
