"""A class for the cells of any model: what is pooled, what is learned of it, and what becomes of a segmenter."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from cellkit.cells.instances import Instances
from cellkit.errors import UserError
from cellkit.files import PACKAGE
from cellkit.models import cell_classes, cell_features, cell_regression, threshold, weights
from cellkit.models.cell_classifier import CellClassifier
from cellkit.models.unet_network import CellposeUNet, load_network
from cellkit.sources.two_lines import compose_halves

STARTER = PACKAGE / "starter" / "starter_light.safetensors"


@pytest.fixture(scope="module")
def segmenter(drawn, tmp_path_factory):
    config = threshold.TrainSettings(diameter_px=30)
    return threshold.train(drawn.select("train"), drawn.select("val"), config, tmp_path_factory.mktemp("cells"))


@pytest.fixture(scope="module")
def learned(drawn, segmenter, tmp_path_factory):
    out = tmp_path_factory.mktemp("classes")
    return cell_classes.train(drawn.select("train"), segmenter, STARTER, cell_classes.Settings(), out)


def accuracy(named, images) -> float:
    pairs = [(named(*images[k]).class_ids, images.instances[k].class_ids) for k in range(len(images))]
    return float(np.mean(np.concatenate([found == true for found, true in pairs])))


# ---- features --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return CellposeUNet(widths=(4, 4, 8, 8)).eval()


def test_a_region_is_pooled_cell_by_cell():
    rng = np.random.default_rng(0)
    maps, labels = rng.normal(size=(3, 12, 20)), rng.integers(0, 4, (12, 20))
    y, x = np.nonzero(labels)
    mean, sd = cell_features.Region(labels[y, x] - 1, y, x).pooled(maps, 3)
    for cell in range(3):
        own = maps[:, labels == cell + 1]
        assert np.allclose(mean[cell], own.mean(axis=1)) and np.allclose(sd[cell], own.std(axis=1))


def test_at_a_coarser_stride_a_pixel_counts_by_how_much_of_it_the_cell_covers():
    region = cell_features.Region(np.zeros(3, int), np.array([0, 0, 0]), np.array([0, 1, 2]))
    mean, _ = region.pooled(np.array([[[3.0, 9.0]]]), 1, stride=2)
    assert mean.tolist() == [[5.0]]


def test_every_cell_is_described_and_order_does_not_matter(network, drawn):
    image, cells = drawn[0]
    told = cell_features.features_of_cells(network, image, cells, 30.0, "both", 12)
    turned = cell_features.features_of_cells(network, image, cells[::-1], 30.0, "both", 12)
    assert told.shape[0] == len(cells) and np.isfinite(told).all() and np.allclose(told, turned[::-1], atol=1e-5)
    none = cell_features.features_of_cells(network, image, cells[:0], 30.0, "both", 12)
    assert len(none) == 0


def test_shape_is_that_of_the_cell(network):
    labels = np.zeros((96, 96), int)
    labels[10:40, 10:40], labels[60:70, 10:90] = 1, 2
    told = cell_features.features_of_cells(
        network, np.zeros((96, 96, 3), np.uint8), Instances.from_labels(labels), 30.0, "both", 6
    )
    assert np.allclose(told[:, 0], np.log([1, 800 / 900])), "area over that of a square as wide as a cell"
    assert abs(told[0, 1]) < 0.05 and told[1, 1] == pytest.approx(np.log(8), abs=0.05), "length over width"
    assert told[0, 4] == 0 and told[0, 2] > told[1, 2], "no neighbour in the ring; a square is rounder than a bar"


def test_cells_without_a_pixel_at_network_scale_and_in_several_tiles_are_described(network, monkeypatch):
    labels = np.zeros((160, 200), int)
    labels[5, 5], labels[4:60, 20:70], labels[100:150, 140:190] = 1, 2, 3
    image = np.random.default_rng(0).integers(0, 255, (160, 200, 3), dtype=np.uint8)
    told = [cell_features.features_of_cells(network, image, Instances.from_labels(labels), 60.0, "both", 5)]
    monkeypatch.setattr(cell_features, "TILE_PX", 32)
    monkeypatch.setattr(cell_features, "MARGIN_PX", 32)
    told.append(cell_features.features_of_cells(network, image, Instances.from_labels(labels), 60.0, "both", 5))
    assert all(np.isfinite(one).all() for one in told)
    assert np.allclose(told[0][:, :29], told[1][:, :29], atol=1e-4), "shape and brightness do not depend on the tiles"


def test_cells_that_share_a_pixel_at_network_scale_are_all_described(network):
    labels = np.zeros((160, 200), int)
    labels[0:2, 0:2], labels[2:4, 0:2], labels[0:2, 2:4], labels[20:90, 20:90] = 1, 2, 3, 4
    image = np.random.default_rng(0).integers(0, 255, (160, 200, 3), dtype=np.uint8)
    cells = Instances.from_labels(labels)
    told = cell_features.features_of_cells(network, image, cells, 300.0, "both", 5)
    assert len(told) == 4 and np.isfinite(told).all()
    alone = cell_features.features_of_cells(network, image, cells[[3]], 300.0, "both", 5)
    assert np.allclose(told[3, :4], alone[0, :4], atol=1e-5), "they take no pixel of a larger one"


# ---- a trained one ---------------------------------------------------------------------------------------------------
def test_it_learns_the_lines_and_its_card_says_what_was_chosen(learned, drawn):
    named, card = cell_classes.load(learned), weights.read_card(learned)
    assert accuracy(named, drawn.select("val")) > 0.6 and accuracy(named, drawn.select("train")) > 0.95
    assert card.classes == drawn.classes and card.config["ring_px"] == 12 and card.config["encoder"] == "starter_light"
    counts = np.bincount(np.concatenate([c.class_ids for c in drawn.select("train").instances]), minlength=3)
    assert list(card.metrics["cells"].values()) == counts[1:].tolist()
    image, cells = drawn[3]
    again = named(image, cells.with_classes(0 * cells.class_ids).with_scores(np.full(len(cells), 0.4)))
    assert again.with_classes(cells.class_ids).with_scores(cells.scores) == cells, "outlines stay; a class is given"
    assert set(again.scores) == {0.4} and set(again.class_ids) <= {1, 2}
    assert len(named(image, cells[:0])) == 0


def test_one_set_of_features_votes_alone_where_it_is_right_more_often_on_images_left_out():
    classes = np.array([1, 1, 2, 2])
    good, bad = np.eye(2)[classes - 1] * 0.8 + 0.1, np.full((4, 2), 0.5) + [[-0.45, 0.45]]

    def learned(left_out):
        return cell_regression.Learned(cell_regression.Regression(*np.zeros((4, 2))), 0.1, left_out)

    assert cell_classes.votes_kept({"a": learned(good), "b": learned(bad)}, classes) == (("a",), 1.0)
    assert cell_classes.votes_kept({"a": learned(good), "b": learned(good)}, classes) == (("a", "b"), 1.0)
    assert cell_classes.votes_kept({"a": learned(good), "b": learned(None)}, classes) == (("a", "b"), None)


def test_classes_of_an_earlier_version_are_read_as_they_were(drawn, segmenter, tmp_path, monkeypatch):
    """Features alone voted, by names without a prefix, and the card said what the network was shown."""
    monkeypatch.setattr(cell_classes, "votes_kept", lambda learned, classes: ((cell_classes.FEATURES,), None))
    now = cell_classes.train(drawn.select("train"), segmenter, STARTER, cell_classes.Settings(), tmp_path)
    card, tensors = weights.read_card(now), weights.load_tensors(now)
    config = {key: value for key, value in card.config.items() if key != "votes"} | {"channels": "both"}
    plain = {name.removeprefix("features."): tensor for name, tensor in tensors.items()}
    old = weights.save_checkpoint(
        tmp_path / "old.safetensors", plain, card.backend, classes=card.classes, config=config
    )
    image, cells = drawn[0]
    assert cell_classes.load(old)(image, cells) == cell_classes.load(now)(image, cells)


def test_images_of_a_group_are_left_out_together(drawn, segmenter, tmp_path, monkeypatch):
    left_out = []
    monkeypatch.setattr(
        cell_regression, "choose_strength", lambda x, y, groups, n: left_out.append(groups) or (0.03, None)
    )
    train = drawn.select("train")
    for group in ("", "w1"):
        images = replace(train, records=[replace(record, group=group) for record in train.records])
        cell_classes.train(images, segmenter, STARTER, cell_classes.Settings(cut_outs=False), tmp_path)
    assert [len(set(groups.tolist())) for groups in left_out] == [len(train)] * 3 + [1] * 3, "for each regression"


def test_cells_of_unknown_class_do_not_teach_and_the_same_comes_out_again(learned, drawn, segmenter, tmp_path):
    train = drawn.select("train")
    partly = [c.with_classes(np.where(np.arange(len(c)) < 3, 0, c.class_ids)) for c in train.instances]
    made = [
        cell_classes.train(
            replace(train, instances=partly), segmenter, STARTER, cell_classes.Settings(), tmp_path / name
        )
        for name in "ab"
    ]
    first, second = map(weights.load_tensors, made)
    assert all(torch.equal(first[name], second[name]) for name in first)
    before, after = (weights.read_card(path).metrics["cells"] for path in (learned, made[0]))
    assert sum(before.values()) - sum(after.values()) == 3 * len(train), "three cells of each image"


def test_a_detectors_look_at_the_cut_outs_votes(learned, drawn, segmenter, tmp_path):
    looks = CellClassifier(2)
    with torch.no_grad():
        looks.last.weight.zero_()
        looks.last.bias.copy_(torch.tensor([-20.0, 20.0]))  # always the second line
    tensors = {f"cell_classifier.{name}": tensor for name, tensor in looks.state_dict().items()}
    detector = tmp_path / "maskrcnn.safetensors"
    weights.save_checkpoint(
        detector, tensors, "maskrcnn_torchvision", classes=drawn.classes, config={"diameter_px": 30.0}
    )
    train, chosen = drawn.select("train"), cell_classes.Settings(cut_outs=True)
    both = cell_classes.load(cell_classes.train(train, segmenter, STARTER, chosen, tmp_path / "a", detector))
    alone = cell_classes.load(learned)
    image, cells = drawn[0]
    assert (alone(image, cells).class_ids == 1).mean() > 0.9 and (both(image, cells).class_ids == 2).mean() > 0.9
    off = cell_classes.train(
        train, segmenter, STARTER, chosen.model_copy(update={"cut_outs": False}), tmp_path / "b", detector
    )
    assert cell_classes.load(off)(image, cells) == alone(image, cells)
    swapped = replace(train, classes=train.classes[::-1])
    other = cell_classes.train(swapped, segmenter, STARTER, chosen, tmp_path / "c", detector)
    assert weights.read_card(other).config["cut_outs_diameter_px"] is None, "a detector of other classes has no vote"


def test_a_segmenter_gets_classes_image_by_image(learned, drawn):
    bare = threshold.load(cell_classes.segmenter_of(learned))
    asked = []

    def images():
        for k in (3, 4):
            asked.append(k)
            yield drawn.image(k)

    stream = cell_classes.with_cell_classes(bare, learned)(images())
    first = next(stream)
    assert asked == [3]
    founds = [first, *stream]
    for k, found in zip((3, 4), founds, strict=True):
        (plain,) = bare([drawn.image(k)])
        assert found.with_classes(0 * found.class_ids) == plain and (found.class_ids > 0).all()


def test_the_segmenter_must_lie_beside_as_it_was(learned, tmp_path):
    import shutil

    folder = shutil.copytree(learned.parent, tmp_path / "moved")
    path = folder / learned.name
    assert cell_classes.segmenter_of(path).parent == folder
    beside = cell_classes.segmenter_of(path)
    beside.write_bytes(b"other")
    with pytest.raises(UserError, match="sha256 differs"):
        cell_classes.segmenter_of(path)
    beside.unlink()
    with pytest.raises(UserError, match="is missing\ncopy it together with the classes"):
        cell_classes.segmenter_of(path)
    with pytest.raises(UserError, match="is a checkpoint of cell_classes"):
        load_network(path)


# ---- images of one class, and of several -----------------------------------------------------------------------------
def lone(images, line: int) -> tuple[np.ndarray, Instances]:
    """Return the first image all of whose cells are of a line."""
    return images[next(k for k in range(len(images)) if set(images.instances[k].class_ids.tolist()) == {line})]


def test_images_of_one_line_are_told_together_and_those_of_several_cell_by_cell(learned, drawn, monkeypatch):
    card = weights.card_for(learned, cell_classes.NAME)
    assert card.config["alone"], "each training image holds one line"
    told = []
    known = cell_classes.told_together
    monkeypatch.setattr(cell_classes, "told_together", lambda *votes: told.append(votes) or known(*votes))
    named = cell_classes.load(learned)
    image, cells = compose_halves(lone(drawn, 1), lone(drawn, 2))
    assert len(set(named(image, cells).class_ids)) == 2, "both lines are found"
    surrounded, alone = told[-1]
    assert np.allclose(known(surrounded, alone), (surrounded + alone) / 2)
    image, cells = lone(drawn, 1)
    found = named(image, cells).class_ids
    assert np.array_equal(found, known(*told[-1]).argmax(axis=1) + 1)


def test_where_training_images_hold_several_lines_cells_are_told_by_all_that_is_seen(drawn, segmenter, tmp_path):
    train = drawn.select("train")
    mixed = [cells.with_classes(1 + np.arange(len(cells)) % 2) for cells in train.instances]
    path = cell_classes.train(replace(train, instances=mixed), segmenter, STARTER, cell_classes.Settings(), tmp_path)
    assert not weights.card_for(path, cell_classes.NAME).config["alone"]
    assert not any(name.startswith("alone.") for name in weights.load_tensors(path))
