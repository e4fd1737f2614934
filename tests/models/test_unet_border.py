"""The U-Net with touching border: its loss, its encoders, its classes, its history."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from backend_cases import config_of, history_of

from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.errors import UserError
from cellkit.models import border_maps, border_network, unet_border, weights
from cellkit.models.border_batches import BorderLoss, Crops, border_loss, class_weights, crop, prepare
from cellkit.models.border_target import NOT_KNOWN, SOME_CLASS
from cellkit.models.shared import tiles
from cellkit.models.shared.inputs import NORMALISE

BALANCES = ("none", "frequency", "focal", "dice", "distance", "frequency_and_dice")
SHAPE = {"encoder": "tu-resnet10t", "encoder_depth": 4, "decoder_width": 4, "channels": "both", "kinds": 3}


@pytest.fixture(scope="module")
def trained(drawn, tmp_path_factory):
    config = config_of("unet_border", val_images=2)
    return unet_border.train(drawn.select("train"), drawn.select("val"), config, tmp_path_factory.mktemp("border"))


def right(target, sure=20.0, kinds=3):
    """Logits that are right where a class is known."""
    return sure * torch.nn.functional.one_hot(target.long().clamp_max(kinds - 1), kinds).permute(0, 3, 1, 2).float()


@pytest.mark.parametrize("balance", BALANCES)
def test_a_loss_falls_to_nothing_where_the_network_is_right(balance):
    target = torch.tensor(np.random.default_rng(0).integers(0, 3, (2, 16, 16)).astype(np.uint8))
    weight = {"frequency": torch.ones(3), "frequency_and_dice": torch.ones(3), "distance": torch.ones(2, 16, 16)}.get(
        balance
    )
    good = border_loss(right(target), target, balance, weight)
    bad = border_loss(right((target + 1) % 3), target, balance, weight)
    assert 0 <= good < 1e-3 < bad


@pytest.mark.parametrize("balance", BALANCES)
def test_what_is_not_known_teaches_nothing(balance):
    target = torch.full((1, 8, 8), NOT_KNOWN, dtype=torch.uint8)
    target[0, :4] = 1
    weight = {"frequency": torch.ones(3), "frequency_and_dice": torch.ones(3), "distance": torch.ones(1, 8, 8)}.get(
        balance
    )
    logits = torch.zeros(1, 3, 8, 8, requires_grad=True)
    border_loss(logits, target, balance, weight).backward()
    assert logits.grad[0, :, 4:].abs().max() == 0 < logits.grad[0, :, :4].abs().max()


@pytest.mark.parametrize("balance", BALANCES)
def test_a_cell_of_no_class_may_be_of_any(balance):
    target = torch.full((1, 4, 4), SOME_CLASS, dtype=torch.uint8)
    weight = {"frequency": torch.ones(4), "frequency_and_dice": torch.ones(4), "distance": torch.ones(1, 4, 4)}.get(
        balance
    )
    losses = [float(border_loss(right(torch.full((1, 4, 4), k), kinds=4), target, balance, weight)) for k in range(4)]
    assert max(losses[1], losses[2]) < 1e-3 < min(losses[0], losses[3])


def test_a_rare_class_weighs_more_and_a_pixel_one_on_average():
    shares = np.array([0.9, 0.09, 0.01, 0.0])
    weight = class_weights(shares)
    assert weight[0] < 1 < weight[1] < weight[2] and weight[3] == 0
    assert (weight * shares).sum() == pytest.approx(1)


def test_a_crop_turns_image_and_target_alike_and_knows_nothing_beyond_the_edge(drawn):
    image, truth = drawn[0]
    item = prepare(image, truth, 30.0, 0.1, 1, "both", NORMALISE, "distance")
    assert item.planes.shape[1:] == item.target.shape == item.weight.shape
    bright = np.where(truth.paint()[..., None] > 0, 255, 0).repeat(3, 2).astype(np.uint8)
    flat = prepare(bright, truth, 30.0, 0.1, 1, "both", NORMALISE)
    made = crop(flat, np.random.default_rng(3), 96, True, False)
    known = made.target != NOT_KNOWN
    agree = (made.planes[0] > 0.5) == (made.target > 0)
    assert agree[known].mean() > 0.97
    wide = crop(flat, np.random.default_rng(3), 256, True, False)
    assert (wide.target == NOT_KNOWN).any(), "what lies beyond the image is not known"


def test_batches_depend_on_their_step_alone(drawn):
    items = [prepare(*drawn[k], 30.0, 0.1, 1, "both", NORMALISE) for k in range(2)]
    first, second = (BorderLoss(None, items, 3, 2, 64, 5) for _ in range(2))
    first.drawn(0)
    for one, other in zip(first.drawn(1)[:2], second.drawn(1)[:2], strict=True):
        np.testing.assert_array_equal(one, other)


def test_shares_of_several_processes_are_the_batch_of_one(drawn, trained, monkeypatch):
    network, _ = border_network.load_network(trained, unet_border.NAME, "float32")
    rng, losses = np.random.default_rng(0), []
    crops = Crops(rng.random((4, 2, 32, 32), np.float32), rng.integers(0, 4, (4, 32, 32), np.uint8), None)
    loss_at = BorderLoss(network, [prepare(*drawn[0], 30.0, 0.1, 2, "both", NORMALISE)], 4, 4, 32, 5)
    monkeypatch.setattr(loss_at, "drawn", lambda step: crops)
    for place in ((0, 1), (0, 3), (1, 3), (2, 3)):
        monkeypatch.setattr("cellkit.models.shared.shares.place", lambda place=place: place)
        losses.append(float(loss_at(0).detach()))
    assert sum(losses[1:]) == pytest.approx(losses[0], rel=1e-5) and losses[1] > losses[2]


def test_the_history_has_the_iou_of_each_class_and_the_checkpoint_its_score(trained, drawn):
    rows = history_of(trained)
    assert {"iou_background", "iou_HEK", "iou_N2a", "iou_border"} <= set(rows[0])
    assert all(0 <= row["iou_background"] <= 1 for row in rows)
    (kept,) = [row for row in rows if row["kept"]]
    card = weights.read_card(trained)
    val = drawn.select("val")
    found = list(unet_border.load(trained)(val.images()))
    assert unet_border.map_iou(zip(val.instances, found, strict=True)) == pytest.approx(kept["score"], abs=1e-6)
    assert card.classes == drawn.classes and card.config["kinds"] == 4


def test_cells_have_classes_where_the_training_cells_had_two(trained, drawn, tmp_path):
    network, card = border_network.load_network(trained, "unet_border")
    probabilities = border_maps.forward(network, np.zeros((2, 40, 50), np.float32))
    assert probabilities.shape == (4, 40, 50) and np.allclose(probabilities.sum(axis=0), 1, atol=1e-5)
    one = drawn.select("train")
    none = CellDataset(one.records, [cells.with_classes(0) for cells in one.instances], (), one.root)
    checkpoint = unet_border.train(none, none.subset([]), config_of("unet_border", steps=1), tmp_path)
    assert weights.read_card(checkpoint).classes == ()
    assert not any(found.class_ids.any() for found in unet_border.load(checkpoint)(drawn.images()))


def test_a_training_that_was_stopped_goes_on_to_the_same_weights(trained, drawn, tmp_path, monkeypatch):
    from cellkit.models import training

    real, taken = training._step, []

    def stopping(*arguments):
        if len(taken) == 1:
            raise KeyboardInterrupt
        taken.append(1)
        return real(*arguments)

    monkeypatch.setattr(training, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(training, "_step", stopping)
    config, data = config_of("unet_border", val_images=2), (drawn.select("train"), drawn.select("val"))
    with pytest.raises(KeyboardInterrupt):
        unet_border.train(*data, config, tmp_path)
    monkeypatch.setattr(training, "_step", real)
    again = unet_border.train(*data, config, tmp_path)
    first, second = weights.load_tensors(trained), weights.load_tensors(again)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_tiles_give_what_the_whole_gives(trained, drawn):
    network, _ = border_network.load_network(trained, "unet_border")
    planes = np.tile(unet_border.prepare(*drawn[0], 30.0, 0.1, 1, "both", NORMALISE).planes, (1, 3, 3))
    forward = lambda planes: border_maps.forward(network, planes)  # noqa: E731
    whole, tiled = (tiles.blend_tiles(forward, planes, size, 128) for size in (1024, 256))
    assert tiled.shape == whole.shape and np.corrcoef(tiled.ravel(), whole.ravel())[0, 1] > 0.95


def test_the_ceiling_of_cells_that_touch_is_high(drawn):
    assert unet_border.ceiling(drawn, config_of("unet_border")) > 0.9
    halves = Instances.from_labels(np.kron([[1, 2]], np.ones((30, 20), int)))
    assert len(unet_border.coded(halves, 25.0, 0.1)) == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"encoder": "resnet81"}, "no encoder 'resnet81'.*did you mean"),
        ({"encoder": "tu-resnet10x"}, "timm has no encoder 'resnet10x'"),
        ({"encoder": "resnet18", "encoder_weights": "imagenett"}, "no weights 'imagenett'.*did you mean 'imagenet'"),
    ],
)
def test_an_encoder_that_is_not_known_is_refused_before_anything_runs(changes, said):
    with pytest.raises(UserError, match=said):
        unet_border.check(config_of("unet_border", **changes))


def test_weights_that_cannot_be_had_are_refused_and_nothing_starts_from_scratch(drawn, tmp_path, monkeypatch):
    from segmentation_models_pytorch import encoders

    def unreachable(*args, **kwargs):
        raise OSError("the hub cannot be reached")

    monkeypatch.setattr(encoders, "hf_hub_download", unreachable)
    config = config_of("unet_border", encoder="resnet18", encoder_weights="imagenet")
    with pytest.raises(UserError, match="'imagenet' of the encoder 'resnet18' cannot be had.*cannot be reached"):
        unet_border.train(drawn.select("train"), drawn.select("val"), config, tmp_path)


def test_nothing_is_fetched_to_load_a_checkpoint(trained, monkeypatch):
    import socket

    monkeypatch.setattr(socket, "socket", lambda *args, **kwargs: pytest.fail("the network was asked"))
    unet_border.load(trained)


def test_tensors_that_do_not_fit_the_card_are_refused(trained, tmp_path):
    tensors, card = weights.load_tensors(trained), weights.read_card(trained)
    path = weights.save_checkpoint(
        tmp_path / "x.safetensors", tensors, "unet_border", config=card.config | {"kinds": 3}
    )
    with pytest.raises(UserError, match="do not fit its card"):
        unet_border.load(path)


@pytest.mark.parametrize("channels", ["all", "nuclei"])
def test_the_network_has_as_many_inputs_as_it_is_shown(channels):
    network = border_network.start_network(None, 0, "float32", SHAPE | {"channels": channels})
    planes = np.zeros((3 if channels == "all" else 1, 32, 32), np.float32)
    assert border_maps.forward(network.eval(), planes).shape == (3, 32, 32)


def test_a_search_keeps_what_is_set_and_says_where_nothing_is_right(trained, drawn, capsys):
    network, _ = border_network.load_network(trained, "unet_border")
    pairs = [drawn[0]]
    settings = {**border_maps.SHOWN, **border_maps.READ, "diameter_px": 30.0}
    maps = np.zeros((3, 128, 128), np.float32)
    truth = drawn.instances[0]
    maps[1] = truth.paint() > 0
    maps[0] = 1 - maps[1]
    grid = {"border_weight": (1.0,), "seed_threshold": (0.5, 0.3), "cell_threshold": (0.5,), "min_area_px": (15, 10**6)}
    scores = border_maps.score_maps(maps, truth, grid)
    assert scores.shape == (1, 2, 1, 2) and scores[0, 0, 0, 0] > 0 == scores[0, 0, 0, 1]
    assert border_maps.search_settings(network, pairs, settings, []).settings == {}
    blank = border_maps.search_settings(
        network, [(np.zeros((64, 64, 3), np.uint8), truth[[]])], settings, ["seed_threshold"]
    )
    assert blank.settings == {"seed_threshold": 0.5}
