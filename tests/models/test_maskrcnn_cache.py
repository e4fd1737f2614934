"""What a frozen encoder makes of training images: the same from memory as computed, whatever is kept, turned or resumed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from backend_cases import config_of, history_of

from cellkit.cells.instances import Instances
from cellkit.errors import UserError
from cellkit.models import maskrcnn_detect, training, weights
from cellkit.models import maskrcnn_torchvision as maskrcnn
from cellkit.models.cell_classifier import class_logits
from cellkit.models.maskrcnn_cache import MOST_VIEWS, TURNS, EncodedViews, turned
from cellkit.models.maskrcnn_network import build, target
from cellkit.models.shared import detector_training
from cellkit.models.shared.detector_settings import DEFAULTS
from cellkit.models.unet_network import CellposeUNet

SMALL = (4, 8, 12, 16)
CPU = torch.device("cpu")


def detector():
    torch.manual_seed(0)
    return build({**DEFAULTS, "fpn_channels": 16, "widths": SMALL, "precision": "float32"}, classes=2)


def items(n=2, shape=(88, 104)):
    """Random pictures, each with two cells."""
    labels = np.zeros(shape, np.int32)
    labels[10:34, 10:34], labels[40:70, 50:90] = 1, 2
    return [(np.random.default_rng(k).random((3, *shape), np.float32), labels, np.array([0, 1, 2])) for k in range(n)]


def views_of(model, n=2, steps=64, **how):
    model.eval()
    return EncodedViews(model.backbone.encode, items(n), 64, 2, steps, 0, CPU, **how)


@pytest.mark.parametrize(("number_type", "off"), [(torch.float32, 0), (torch.float16, 1e-3)])
def test_features_of_every_turn_are_those_computed_directly(number_type, off):
    model = detector()
    views = views_of(model, number_type=number_type)
    shown = set()
    for number in range(TURNS):
        view = views.view(0, number)
        planes, labels = views.window(0, number)
        shown.add(labels.tobytes())
        with torch.no_grad():
            told = model.backbone.encode(torch.from_numpy(planes[None]))
        assert len(told) == len(view.features) == 4 and np.array_equal(labels, view.labels)
        for kept, direct in zip(view.features, told, strict=True):
            assert kept.dtype == number_type and kept.shape == direct.shape
            assert (kept.float() - direct).abs().max() <= off * max(direct.abs().max(), 1)
    assert len(shown) == TURNS, "each view of an image is turned in another way"


def test_turns_are_the_eight_of_a_square():
    square = np.arange(6).reshape(2, 3)
    found = {turned(square, turn).tobytes() + bytes(turned(square, turn).shape) for turn in range(TURNS)}
    assert len(found) == TURNS
    assert np.array_equal(turned(turned(square, 4), 4), square), "a flip undoes itself"


def test_a_crop_is_cut_from_the_features_where_it_is_cut_from_the_picture():
    model = detector()
    views = views_of(model, number_type=torch.float32)
    planes, labels, features = views.draw(1, 3, np.random.default_rng(5))
    assert planes.shape == (3, 64, 64) and labels.shape == (64, 64)
    assert [tuple(level.shape[1:]) for level in features] == [(64, 64), (32, 32), (16, 16), (8, 8)]
    view = next(view for view in views.kept.values())
    at = [
        (y, x)
        for y in range(0, view.labels.shape[0] - 63, 8)
        for x in range(0, view.labels.shape[1] - 63, 8)
        if np.array_equal(view.planes[:, y : y + 64, x : x + 64], planes)
    ]
    assert len(at) == 1
    (y, x) = at[0]
    for level, stride in zip(features, (1, 2, 4, 8), strict=True):
        whole = view.features[(1, 2, 4, 8).index(stride)][0]
        n = 64 // stride
        assert torch.equal(level, whole[:, y // stride : y // stride + n, x // stride : x // stride + n])


def test_what_is_drawn_does_not_depend_on_what_is_kept(capsys):
    model, drawn = detector(), []
    for most in (None, 1):  # bytes: of the second, no view is there when it is wanted again
        views = views_of(model, most_bytes=most)
        drawn.append([views.draw(k % 2, k, np.random.default_rng(k)) for k in range(12)])
        held = sum(view.bytes for view in views.kept.values())
        assert held == views.bytes <= max(views.most_bytes, max(view.bytes for view in views.kept.values()))
        assert views.encoded == 4 if most is None else views.encoded > 4
    for one, other in zip(*drawn, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one[:2], other[:2], strict=True))
        assert all(torch.equal(a, b) for a, b in zip(one[2], other[2], strict=True))
    told = capsys.readouterr().err
    assert told.count("computed again when needed") == 1 and "2 training images" in told


def test_a_view_serves_several_crops_and_costs_no_more_than_they_would():
    model = detector()
    often, once = views_of(model, steps=640), views_of(model, n=2, steps=1)
    assert (often.uses, often.at_once, often.side_px) == (8, 2, 128)
    assert (once.uses, once.at_once, once.side_px) == (1, 1, 64), "an image that is drawn once is encoded as a crop"
    for step in range(often.steps_each):
        often.draw(step % 2, step, np.random.default_rng(step))
    assert often.encoded == 4
    often.draw(0, often.steps_each, np.random.default_rng(0))
    assert often.encoded == 5, "then others take their place"


@pytest.mark.parametrize(("n", "at_once", "uses"), [(40, 1, 8), (64, 1, 8), (65, 1, 1)])
def test_many_images_cost_no_more_than_their_crops_though_few_views_are_kept(n, at_once, uses):
    shown = []
    encode = lambda x: shown.append(x.shape[-1] * x.shape[-2]) or [x[:, :1, ::8, ::8]]  # noqa: E731
    views = EncodedViews(encode, items(1, (160, 160)) * n, 64, 4, 400, 0, CPU)
    assert (views.at_once, views.uses) == (at_once, uses)
    views.most_bytes = MOST_VIEWS * views.view(0, 0).bytes
    for step in range(400):
        rng = np.random.default_rng(step)
        for index in rng.permutation(n)[:4]:
            views.draw(index, step, rng)
    assert sum(shown) <= 1600 * 64**2


def test_features_too_large_for_sixteen_bits_are_kept_in_thirty_two():
    views = EncodedViews(lambda x: [x * 1e6, x], items(1), 64, 2, 64, 0, CPU)
    large, small = views.view(0, 0).features
    assert (large.dtype, small.dtype) == (torch.float32, torch.float16) and torch.isfinite(large).all()


# ---- the training --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A U-Net of random numbers, as a checkpoint."""
    torch.manual_seed(1)
    network = CellposeUNet(widths=SMALL)
    path = tmp_path_factory.mktemp("tuned") / "u.safetensors"
    config = {"widths": list(SMALL), "precision": "float32"}
    return weights.save_checkpoint(path, network.state_dict(), "cellpose_unet", config=config)


def frozen_config(tuned, **changes):
    few = {"steps": 4, "eval_every": 4, "precision": "float32", "freeze_backbone": True}
    return config_of("maskrcnn_torchvision", start=str(tuned), **(few | changes))


def test_other_labels_of_images_that_choose_begin_a_training_anew(drawn, tuned, tmp_path, monkeypatch):
    stamps = []

    class Stopped(Exception):
        pass

    def begun(model, loss_at, scorer, plan, out, stamp, *rest):
        stamps.append(stamp)
        raise Stopped

    monkeypatch.setattr(detector_training, "fit", begun)
    val = drawn.select("val")
    other = replace(val, instances=[val.instances[0][1:], *val.instances[1:]])
    for choosing in (True, False):
        monkeypatch.setattr(detector_training, "scored_along", lambda *_, on=choosing: ([0], on))
        for judges in (val, val, other):
            with pytest.raises(Stopped):
                maskrcnn.train(drawn.select("train"), judges, frozen_config(tuned), tmp_path)
    assert stamps[0] == stamps[1] != stamps[2] and len(set(stamps[3:])) == 1, (
        "where none chooses, labels change nothing"
    )


@pytest.mark.parametrize("thaw", [None, 0.5])
def test_killed_and_resumed_it_comes_to_the_same_weights(drawn, tuned, tmp_path, monkeypatch, thaw):
    config = frozen_config(tuned, unfreeze_after=thaw)
    whole = maskrcnn.train(drawn.select("train"), drawn.select("val"), config, tmp_path / "whole")
    monkeypatch.setattr(training, "SAVE_EVERY_S", -1.0)
    step_of = detector_training.DetectorLoss.__call__

    def killed(self, step):
        if step == 3:
            raise KeyboardInterrupt
        return step_of(self, step)

    monkeypatch.setattr(detector_training.DetectorLoss, "__call__", killed)
    with pytest.raises(KeyboardInterrupt):
        maskrcnn.train(drawn.select("train"), drawn.select("val"), config, tmp_path / "two")
    taken = []
    monkeypatch.setattr(
        detector_training.DetectorLoss, "__call__", lambda self, step: taken.append(step) or step_of(self, step)
    )
    again = maskrcnn.train(drawn.select("train"), drawn.select("val"), config, tmp_path / "two")
    assert taken == [3]
    one, other = weights.load_tensors(whole), weights.load_tensors(again)
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    start = weights.load_tensors(tuned)
    moved = [k for k, v in start.items() if not torch.equal(one[f"backbone.unet.{k}"].reshape(v.shape), v)]
    assert bool(moved) == (thaw is not None), "the encoder learns only once it is thawed"


def test_a_thawed_encoder_is_trained_and_no_longer_remembered(tuned):
    config = frozen_config(tuned, unfreeze_after=0.5, steps=2)
    settings = {**DEFAULTS, "fpn_channels": 16, "diameter_px": 30.0}
    model = maskrcnn._start(config, settings, ("HEK", "N2a"))
    loss_at = detector_training.DetectorLoss(model.train(), items(), config)
    calls, encode = [], model.backbone.unet.features
    model.backbone.unet.features = lambda x: calls.append(x) or encode(x)
    for step, thawed in enumerate((False, True)):
        model.zero_grad()
        model.train()
        loss_at(step).backward()
        gradients = [p.grad is not None for p in model.backbone.unet.parameters() if p.requires_grad]
        assert gradients and all(g == thawed for g in gradients)
        assert model.backbone.unet.training == thawed
    assert loss_at.views is None and len(calls[-1]) == config.batch_size


@pytest.mark.parametrize("changes", [{"freeze_backbone": False, "start": "scratch"}, {"backbone": "resnet50_fpn_v2"}])
def test_what_is_not_frozen_cannot_be_thawed(changes):
    with pytest.raises(UserError, match="unfreeze_after"):
        maskrcnn.check(maskrcnn.TrainSettings(unfreeze_after=0.5, **changes))


def test_a_detector_built_in_another_way_is_refused(tmp_path):
    tensors = detector().state_dict()
    tensors["backbone.smooth.2.0.weight"] = torch.zeros(3)
    path = tmp_path / "old.safetensors"
    config = {**DEFAULTS, "fpn_channels": 16, "widths": SMALL, "diameter_px": 30.0}
    weights.save_checkpoint(path, tensors, maskrcnn.NAME, classes=("HEK", "N2a"), config=config)
    with pytest.raises(UserError, match="earlier cellkit"):
        maskrcnn.load(path)


def test_the_detector_tells_classes_by_itself_and_learns_them_from_known_cells():
    """Two pictures of one class each, bright and dark: what a step sees is all of one class."""
    model = detector().train()
    head, optimizer = model.class_head, torch.optim.Adam(model.class_head.parameters(), 0.01)
    boxes = torch.tensor([[8.0, 8, 40, 40], [50.0, 50, 80, 80]])
    pictures = [torch.rand((1, 3, 96, 96), generator=torch.Generator().manual_seed(k)) * (2 * k + 1) for k in (0, 1)]
    features = [model.backbone(picture) for picture in pictures]
    for step in range(60):
        k = step % 2
        loss = head.loss(features[k], [{"boxes": boxes, "classes": torch.tensor([k + 1, 0])}])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    head.eval()
    assert [head(one, [boxes]).argmax(dim=1).tolist() for one in features] == [[0, 0], [1, 1]]
    assert head.loss(features[0], [{"boxes": boxes, "classes": torch.zeros(2, dtype=torch.int64)}]).item() == 0
    assert head(features[0], [boxes[:0]]).shape == (0, 2)
    votes = np.log(np.array([[0.9, 0.1]]))
    logits = class_logits(model.eval().cell_classifier, np.zeros((3, 96, 96), np.float32), boxes[:1].numpy())
    said = maskrcnn_detect._classes(logits, votes)
    assert said.tolist() == [1], "a classifier that knows nothing is outvoted"


# ---- cells and images that are hardly there ----------------------------------------------------------------------------------
def test_an_image_without_cells_trains_and_scores(drawn, tuned, tmp_path):
    cells = [Instances.empty(x.shape) if k in (0, 3) else x for k, x in enumerate(drawn.instances)]
    some = replace(drawn, instances=cells)
    config = frozen_config(tuned, steps=2, val_images=0)
    checkpoint = maskrcnn.train(some.select("train"), some.select("val"), config, tmp_path)
    assert 0 <= history_of(checkpoint)[-1]["score"] <= 1
    (found,) = maskrcnn.load(checkpoint)([some.image(0)])
    assert found.shape == (128, 128)


def test_cells_of_a_pixel_are_counted_and_do_no_harm(drawn, capsys):
    labels = np.zeros((96, 96), np.int32)
    labels[10:40, 10:40], labels[60, 60], labels[80, 20:40] = 1, 2, 3  # a cell, a pixel, a line
    item = (np.random.default_rng(0).random((3, 96, 96), np.float32), labels, np.array([0, 1, 2, 1]))
    record = drawn.records[0]
    assert detector_training.say_untrainable([item], [record]) == 2
    told = capsys.readouterr().err
    assert "2 of 3 labelled cells are smaller than 8 px" in told and f"most in {record.image_id}: 2" in told
    assert len(target(labels, item[2], ignore_unknown=True)["boxes"]) == 1
    model = detector().train()
    loss = detector_training.DetectorLoss(model, [item], config_of("maskrcnn_torchvision", crop_px=96))(0)
    loss.backward()
    assert torch.isfinite(loss)
    alone = (item[0], np.where(labels == 2, 1, 0).astype(np.int32), np.array([0, 1]))
    with pytest.raises(UserError, match="nothing to train on"):
        detector_training.say_untrainable([alone], [record])


def test_a_step_that_shows_nothing_known_leaves_a_frozen_encoder_as_it_is():
    model = detector()
    model.backbone.train_unet(True)  # as where it is thawed later
    item = (*items(1)[0][:1], np.full((88, 104), -1, np.int32), np.array([0]))
    config = config_of(
        "maskrcnn_torchvision", freeze_backbone=True, unfreeze_after=0.5, batch_size=2, steps=4, crop_px=64
    )
    loss_at = detector_training.DetectorLoss(model.train(), [item], config)
    for step, frozen in ((0, True), (2, False)):
        loss_at(step).backward()
        assert all(p.grad is None for p in model.backbone.unet.parameters()) == frozen, (
            "else it decays, unseen by its features"
        )
        assert all(p.grad is not None for p in model.backbone.lateral.parameters())
