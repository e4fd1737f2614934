"""What both engines of Mask R-CNN share: anchors from the cells, what a detector begins from, and the order of classes."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from backend_cases import config_of, each, history_of
from hypothesis import given
from hypothesis import strategies as st

from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.errors import UserError
from cellkit.formats.coco import read_coco, write_coco
from cellkit.models import backend_module, get_backend, weights
from cellkit.models.shared import detector_training
from cellkit.models.shared.detector_anchors import anchor_sizes
from cellkit.models.shared.detector_settings import DEFAULTS
from cellkit.models.shared.detector_start import for_classes, take_over

ENGINES = each("maskrcnn_torchvision", "maskrcnn_detectron2")


def squares(*sides: int) -> Instances:
    """Cells of these widths and heights (px), in a row."""
    masks, corners = [np.ones((side, side), bool) for side in sides], np.cumsum([0, *sides[:-1]])
    return Instances.from_boxed_masks(masks, [(int(x), 0) for x in corners], (max(sides), sum(sides)))


# ---- anchors -----------------------------------------------------------------------------------------------------------
@given(st.lists(st.integers(3, 200), min_size=1, max_size=12), st.floats(5, 100))
def test_anchors_reach_the_cells_and_a_level_no_smaller_ones_than_its_stride_allows(sides, diameter_px):
    for name in ("maskrcnn_torchvision", "maskrcnn_detectron2"):
        for strides, count, least in backend_module(name).LEVELS.values():
            sizes = anchor_sizes([squares(*sides)], diameter_px, strides, count, least)
            assert [len(level) for level in sizes] == [count] * len(strides)
            every = [size for level in sizes for size in level]
            assert every == sorted(every) and len(set(every)) == len(every) and every[0] > 0
            assert all(level[0] >= least * stride for level, stride in zip(sizes[1:], strides[1:], strict=True))
            low, high = np.quantile(np.array(sides) * 30 / diameter_px, (0.02, 0.98))
            assert every[0] < (2 * low + 1 if count > 1 else 24) and every[-1] > (0.6 if count > 1 else 0.4) * high


def test_anchors_follow_the_cells_and_need_one():
    small, large = (anchor_sizes([squares(*[side] * 9)], 30.0, (4, 8), 3, 5.0)[0] for side in (12, 30))
    assert small[0] < 12 < small[-1] < large[-1] and large[0] < 30 < large[-1]
    with pytest.raises(ValueError, match="no cell"):
        anchor_sizes([Instances.empty((9, 9))], 30.0, (4, 8), 3, 5.0)


def test_a_detector_of_a_card_without_anchors_has_the_usual_ones():
    from cellkit.models.maskrcnn_network import build

    old = {key: value for key, value in DEFAULTS.items() if key not in ("anchor_sizes", "imagenet", "widths")}
    usual = build({**old, "fpn_channels": 16}, 1).rpn.anchor_generator.sizes
    told = build(
        {**DEFAULTS, "fpn_channels": 16, "anchor_sizes": [[9, 18, 27], [40, 60, 90]]}, 1
    ).rpn.anchor_generator.sizes
    assert usual == ((12, 24, 36), (48, 72, 108)) and told == ((9, 18, 27), (40, 60, 90))


# ---- what a detector begins from ---------------------------------------------------------------------------------------
class Net(torch.nn.Module):
    def __init__(self, outputs: int):
        super().__init__()
        self.body, self.head = torch.nn.Linear(3, 4), torch.nn.Linear(4, outputs)
        self.norm = torch.nn.BatchNorm1d(4)


def test_modules_are_taken_whole_or_not_at_all_and_what_is_new_is_said(capsys):
    from_, to = Net(2), Net(5)
    kept = {name: value.clone() for name, value in to.state_dict().items()}
    tensors = {name: value + 1 for name, value in from_.state_dict().items() if "num_batches" not in name}
    assert take_over(to, tensors, "w") == ["head"]
    now = to.state_dict()
    assert torch.equal(now["body.weight"], tensors["body.weight"]) and torch.equal(now["head.bias"], kept["head.bias"])
    assert "w: 2 of 3 parts are taken over; new: head" in capsys.readouterr().err
    del tensors["body.bias"]
    assert take_over(to, tensors, "w") == ["body", "head"], "half a module is none"
    assert take_over(Net(2), Net(2).state_dict(), "w") == []


@pytest.mark.parametrize("name", ["cell_classifier", "class_head"])
def test_a_classifier_is_taken_over_by_the_names_of_its_classes(name):
    model = torch.nn.ModuleDict({name: torch.nn.ModuleDict({"last": torch.nn.Linear(3, 3)})})
    weight, bias = f"{name}.last.weight", f"{name}.last.bias"
    before = {weight: torch.arange(6.0).reshape(2, 3), bias: torch.tensor([10.0, 20.0])}
    made = for_classes(before, model, ("HEK", "N2a"), ("odd", "N2a", "HEK"))
    assert made[bias][1:].tolist() == [20, 10]
    assert made[weight][1:].tolist() == [[3, 4, 5], [0, 1, 2]]
    assert torch.equal(made[bias][0], model[name]["last"].bias[0])
    assert for_classes({}, model, (), ("HEK",)) == {}, "what is not there is new"
    assert for_classes(before, model, ("HEK", "N2a"), ("cort", "astro", "shsy5y")) == {}, "nor what is of other classes"


def test_a_detectors_classes_in_another_order_keep_their_outputs(tmp_path):
    from cellkit.models.maskrcnn_network import build

    backend, settings = get_backend("maskrcnn_torchvision"), {**DEFAULTS, "fpn_channels": 8, "widths": (4, 8, 12, 16)}
    first = build(settings, 2)
    path = tmp_path / "first.safetensors"
    weights.save_checkpoint(path, first.state_dict(), backend.NAME, classes=("HEK", "N2a"), config=settings)
    config = config_of("maskrcnn_torchvision", start=str(path), fpn_channels=8, freeze_backbone=True)
    swapped = backend._start(config, dict(settings), ("N2a", "HEK"))
    for one, other in ((first.class_head, swapped.class_head), (first.cell_classifier, swapped.cell_classifier)):
        assert torch.equal(one.last.weight, other.last.weight[[1, 0]].cpu())
        assert torch.equal(one.last.bias, other.last.bias[[1, 0]].cpu())


def test_which_rows_of_the_classifiers_are_new_is_said_and_another_margin_too(tmp_path, caplog):
    from cellkit.models.maskrcnn_network import build

    backend, settings = get_backend("maskrcnn_torchvision"), {**DEFAULTS, "fpn_channels": 8, "widths": (4, 8, 12, 16)}
    path, layers = tmp_path / "first.safetensors", "cell_classifier.last and class_head.last"
    weights.save_checkpoint(
        path, build(settings, 2).state_dict(), backend.NAME, classes=("HEK", "N2a"), config=settings
    )
    config = config_of("maskrcnn_torchvision", start=str(path), fpn_channels=8, freeze_backbone=True)
    for classes, told in (
        (("N2a", "HEK"), "parts are taken over\n"),
        (("N2a", "HEK", "X"), f"parts are taken over; of {layers} all but the rows of X\n"),
        (("X", "N2a"), f"parts are taken over; of {layers} all but the rows of X\n"),
        (("X", "Y"), "parts are taken over; new: cell_classifier.last, class_head.last\n"),
    ):
        caplog.clear()
        backend._start(config, dict(settings), classes)
        assert told in f"{caplog.text}\n" and ("from first.safetensors: all " in caplog.text) == (len(told) < 30)
        assert ("its class HEK is not taken over" in caplog.text) == (classes == ("X", "N2a"))
        assert "mask_box_margin" not in caplog.text
    assert "its classes HEK, N2a are not taken over, as the configuration does not name them" in caplog.text
    backend._start(config, settings | {"mask_box_margin": 0.0}, ("HEK", "N2a"))
    assert (
        "it was trained with mask_box_margin 0.1 and goes on with 0: its masks have to learn that anew" in caplog.text
    )
    old = {key: value for key, value in settings.items() if key != "mask_box_margin"}
    weights.save_checkpoint(path, build(settings, 2).state_dict(), backend.NAME, classes=("HEK", "N2a"), config=old)
    backend._start(config, dict(settings), ("HEK", "N2a"))
    assert "it was trained with mask_box_margin 0 and goes on with 0.1" in caplog.text


def test_a_start_whose_card_says_nothing_of_colours_and_anchors_goes_on_as_it_was(tmp_path):
    from cellkit.models.maskrcnn_network import build

    backend = get_backend("maskrcnn_torchvision")
    settings = {**DEFAULTS, "backbone": "resnet50_fpn_v2"}
    old = {key: value for key, value in settings.items() if key not in ("anchor_sizes", "imagenet", "widths")}
    path = tmp_path / "old.safetensors"
    weights.save_checkpoint(path, build(old, 1).state_dict(), backend.NAME, classes=("HEK",), config=old)
    config = config_of("maskrcnn_torchvision", start=str(path), backbone="resnet50_fpn_v2", anchors="data")
    noted = settings | {"anchor_sizes": ((9, 12),) * 5}
    model = backend._start(config, noted, ("HEK",))
    assert not noted["imagenet"] and noted["anchor_sizes"] is None
    assert float(model.transform.mean.abs().sum()) == 0


@pytest.mark.parametrize("name", ENGINES)
def test_a_detector_starts_from_one_of_ours_heads_and_all(name, drawn, tmp_path, capsys):
    backend, train, val = get_backend(name), drawn.select("train"), drawn.select("val")
    first = backend.train(train, val, config_of(name, anchors="data"), tmp_path / "first")
    still = {
        "steps": 1,
        "learning_rate": 1e-9,
        "weight_decay": 0,
        "seed": 3,
        "warmup_steps": 0,
        "freeze_backbone": True,
    }
    capsys.readouterr()
    other_sizes = train.subset([0])  # whose labels alone would ask for other anchors
    again = backend.train(
        other_sizes, val, config_of(name, start=str(first), anchors="data", **still), tmp_path / "again"
    )
    told = capsys.readouterr().err
    assert f"{name}, from maskrcnn.safetensors: all" in told
    assert "anchors are those of maskrcnn.safetensors, which it starts from" in told
    one, two = weights.load_tensors(first), weights.load_tensors(again)
    learned = [key for key in one if "running" not in key and "num_batches" not in key]  # what a step moves by its rate
    assert all(torch.allclose(one[key], two[key], atol=1e-6) for key in learned)
    cards = [weights.read_card(path).config for path in (first, again)]
    assert cards[0]["anchor_sizes"] == cards[1]["anchor_sizes"] and len(cards[0]["anchor_sizes"]) == 2
    other = {"maskrcnn_torchvision": "resnet50_fpn_v2", "maskrcnn_detectron2": "resnet50_fpn"}[name]
    with pytest.raises(UserError, match="is a detector with cellpose_unet, and maskrcnn.backbone is resnet50"):
        backend.check(config_of(name, start=str(first), backbone=other))


def test_torchvisions_coco_weights_start_encoder_and_what_fits_and_a_frozen_body_stays(drawn, tmp_path, capsys):
    """Random numbers under the names that torchvision's own detector has, as `cellkit fetch` converts it."""
    from torchvision.models.detection import maskrcnn_resnet50_fpn_v2

    published = maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None).state_dict()
    path = weights.save_checkpoint(tmp_path / "coco.safetensors", published, "torchvision")
    name = "maskrcnn_torchvision"
    few = {"start": str(path), "backbone": "resnet50_fpn_v2", "steps": 1, "freeze_backbone": True, "batch_size": 1}
    made = get_backend(name).train(drawn.select("train"), drawn.select("val"), config_of(name, **few), tmp_path / "out")
    told = capsys.readouterr().err
    assert "coco.safetensors: " in told and "parts are taken over; new: cell_classifier" in told
    tensors, card = weights.load_tensors(made), weights.read_card(made)
    body = [key for key in published if key.startswith("backbone.body.") and "num_batches" not in key]
    assert len(body) > 200 and all(torch.equal(tensors[key], published[key]) for key in body), "frozen, statistics too"
    assert card.config["imagenet"] and card.metrics["start"] == "coco"
    (found,) = get_backend(name).load(made)([drawn.image(0)])
    assert found.shape == (128, 128)
    with pytest.raises(UserError, match="give it as maskrcnn.start, with maskrcnn.backbone: resnet50_fpn_v2"):
        get_backend(name).check(config_of(name, start=str(path)))


# ---- classes -----------------------------------------------------------------------------------------------------------
def numbered(data: CellDataset, path, classes: tuple[str, ...], ids: dict[str, int]) -> CellDataset:
    """The cells as a COCO file has them whose categories are called and numbered so, read again."""
    order = np.array([0, *(classes.index(name) + 1 for name in data.classes)])
    cells = [x.with_classes(order[x.class_ids]) for x in data.instances]
    written = json.loads(write_coco(path, data.records, cells, classes).read_text())
    number = {one["id"]: ids[one["name"]] for one in written["categories"] if one["name"] in ids}
    written["categories"] = [one | {"id": number[one["id"]]} for one in written["categories"] if one["id"] in number]
    for one in written["annotations"]:
        one["category_id"] = number[one["category_id"]]
    path.write_text(json.dumps(written))
    return replace(read_coco(path), records=data.records, root=data.root)


@pytest.mark.parametrize("name", ENGINES)
def test_categories_0_7_90_and_another_order_in_val_come_back_right(name, drawn, tmp_path, monkeypatch):
    three = replace(drawn, classes=("HEK", "N2a", "odd"))
    third = [
        cells.with_classes(np.where(np.arange(len(cells)) % 5 == 0, 3, cells.class_ids)) for cells in three.instances
    ]
    three = replace(three, instances=third)
    train = numbered(three.select("train"), tmp_path / "train.json", three.classes, {"HEK": 0, "N2a": 7, "odd": 90})
    val = numbered(three.select("val"), tmp_path / "val.json", ("odd", "HEK", "N2a"), {"odd": 0, "HEK": 7, "N2a": 90})
    assert train.classes == ("HEK", "N2a", "odd") and val.classes == ("odd", "HEK", "N2a")
    right = {image.tobytes(): cells for image, cells in zip(three.images(), three.instances, strict=True)}
    perfect = lambda model, image, settings, left_out=None: right[image.tobytes()].with_scores(0.9)  # noqa: E731
    backend = get_backend(name)
    with monkeypatch.context() as patched:
        patched.setattr(detector_training, "detect_image", perfect)
        made = backend.train(train, val, config_of(name, val_images=0), tmp_path / "out")
    assert {row["score"] for row in history_of(made)} == {1.0}, "a detector that is right is told so"
    assert weights.read_card(made).classes == ("HEK", "N2a", "odd")
    for found in backend.load(made, backend.Settings(score_threshold=0.0))(train.images()):
        assert set(found.class_ids.tolist()) <= {1, 2, 3}
    with pytest.raises(
        UserError, match="classes HEK, odd, new here, HEK, N2a, odd in the training images\nno training"
    ):
        backend.train(train, replace(val, classes=("HEK", "odd", "new")), config_of(name), tmp_path / "none")
