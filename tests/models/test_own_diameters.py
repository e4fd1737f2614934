"""Images whose cells differ in size: each is scaled by its own diameter, in training as when predicted; and types take turns."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.config.sections import LabelConfig
from cellkit.fetch.find import find_weights
from cellkit.labelling.annotate import with_diameter
from cellkit.models import cellpose_unet as unet
from cellkit.models import unet_batches, weights
from cellkit.models.shared import inputs
from cellkit.models.shared.diameter import First, diameter_of, middle_of
from cellkit.models.shared.fine_tuning import map_iou
from cellkit.models.shared.flow_loss import dealt


@pytest.fixture
def of_two_sizes(drawn, tmp_path):
    """Two training images as they are, and two others at three times the size."""
    records, instances = [], []
    for k in range(4):
        image, truth, record = drawn.image(k), drawn.instances[k], drawn.records[k]
        times = 3 if k % 2 else 1
        Image.fromarray(np.kron(image, np.ones((times, times, 1), np.uint8))).save(tmp_path / f"{k}.png")
        instances.append(Instances.from_labels(np.kron(truth.paint(), np.ones((times, times), np.int32))))
        height_px, width_px = instances[-1].shape
        place = {"path": f"{k}.png", "height_px": height_px, "width_px": width_px}
        records.append(replace(record, **place, split="train"))
    return CellDataset(records, instances, drawn.classes, tmp_path, [1, 2, 3, 4])


def test_images_of_two_sizes_are_read_and_trained_each_at_its_own(of_two_sizes, tmp_path):
    config = unet.TrainSettings(base=str(find_weights("starter_light")), steps=1, precision="float32")
    settings = unet.uncalibrated(of_two_sizes, config)
    assert settings["diameter_of"] == "image"
    assert settings["diameter_px"] == middle_of(cells.areas_px for cells in of_two_sizes.instances)
    loss = unet_batches.loss_of(of_two_sizes, config, settings)
    sides = [item.planes.shape[1] for item in loss.items]
    assert max(sides) < 1.3 * min(sides), "all cells are as large to the network"
    read = unet.calibrate(of_two_sizes, config, tmp_path / "own")
    together = unet.calibrate(of_two_sizes, config.model_copy(update={"diameter_of": "batch"}), tmp_path / "together")
    assert weights.read_card(read).config["diameter_of"] == "image"
    assert weights.read_card(together).config["diameter_of"] == "batch"
    images = [of_two_sizes.image(k) for k in range(4)]
    own, one = (map_iou(zip(of_two_sizes.instances, unet.load(path)(images), strict=True)) for path in (read, together))
    assert own > one + 0.05


def test_what_is_told_of_diameters_stays(of_two_sizes, drawn):
    told = unet.TrainSettings(diameter_px=30.0)
    assert unet.uncalibrated(of_two_sizes, told)["diameter_of"] == "batch", "a diameter that is set is every image's"
    told = unet.TrainSettings(diameter_of="batch")
    assert unet.uncalibrated(of_two_sizes, told)["diameter_of"] == "batch"
    assert unet._searched(told, unet.uncalibrated(of_two_sizes, told))[0] != "diameter_of"
    alike = unet.uncalibrated(drawn, unet.TrainSettings())
    assert (alike["diameter_of"], alike["diameter_px"]) == ("batch", diameter_of(drawn.instances))


def test_a_training_of_two_sizes_is_scored_and_handed_on_at_the_own_diameters(of_two_sizes, tmp_path, monkeypatch):
    """The light starter finds cells, so where it looks tells in the first score; memory is asked for at each one's scale."""
    asked = []
    monkeypatch.setattr(unet, "ask_for_memory", lambda *given: asked.append(given[2:]))
    config = unet.TrainSettings(
        base=str(find_weights("starter_light")), steps=1, batch_size=2, crop_px=64, search_images=2
    )
    val = of_two_sizes.with_records([replace(record, split="val") for record in of_two_sizes.records])
    first = {}
    for whose in ("image", "batch"):
        out = tmp_path / whose
        told = config.model_copy(update={"diameter_of": None if whose == "image" else whose, "precision": "float32"})
        card = weights.read_card(unet.train(of_two_sizes, val, told, out))
        assert card.config["diameter_of"] == whose
        first[whose] = pd.read_csv(out / "history.csv")["score"].dropna().iloc[0]
    assert first["image"] > first["batch"] + 0.05
    each_px, (smallest_px, cell_px) = asked[0][0], asked[0][-2:]
    small, large = each_px[0], each_px[1]
    assert large > 2 * small and smallest_px == pytest.approx(
        unet.uncalibrated(of_two_sizes, config)["diameter_px"] / 2
    )
    assert len(set(asked[1][0])) == 1 and cell_px == 30, "of one diameter all are scaled by that"


def test_what_is_kept_in_memory_is_counted_image_by_image(of_two_sizes, monkeypatch):
    told = []
    monkeypatch.setattr(inputs, "check_memory", lambda what, size, verb: told.append((str(what), size)))
    sides = [record.height_px for record in of_two_sizes.records]
    for each_px in ([30.0, 90.0] * 2, [30.0]):
        inputs.ask_for_memory(of_two_sizes, of_two_sizes.subset([]), each_px, 20, 0)
    (own_words, own), (one_words, one) = told
    assert (
        own < one / 4 and own_words.endswith("diameters of 30 to 90 px") and one_words.endswith("a diameter of 30 px")
    )
    assert one >= 20 * sum(side**2 for side in sides)


def test_what_labels_lose_is_asked_at_the_diameters_of_training(tmp_path):
    """Large cells in one image, small ones in three: scaled by one diameter the small ones would vanish."""
    records, cells = [], []
    for k, (side, width, count) in enumerate(((512, 60, 25), *[(256, 8, 7)] * 3)):
        labels = np.zeros((side, side), np.int32)
        for cell in range(count):
            y, x = 10 + (cell // 5) * (side // 6), 10 + (cell % 5) * (side // 6)
            labels[y : y + width, x : x + width] = cell + 1
        Image.fromarray(np.full((side, side, 3), 90, np.uint8)).save(tmp_path / f"{k}.png")
        records.append(ImageRecord(str(k), f"{k}.png", side, side, split="train"))
        cells.append(Instances.from_labels(labels))
    data = CellDataset(records, cells, root=tmp_path)
    assert unet.ceiling(data, unet.TrainSettings()) > 0.95


@pytest.mark.parametrize("least_px", [15, 300])
def test_specks_do_not_draw_the_scale_away_from_the_cells(least_px):
    """Three cells of 80 px and twelve specks of 10 px: looked at again, the cells are still found."""
    rows, columns = np.mgrid[:400, :400]
    plane, rng = np.full((400, 400), 15.0), np.random.default_rng(0)
    for y, x in ((100, 100), (100, 290), (290, 200)):
        plane[(rows - y) ** 2 + (columns - x) ** 2 < 40**2] = 150
    for y, x in rng.integers(10, 390, (12, 2)):
        plane[(rows - y) ** 2 + (columns - x) ** 2 < 5**2] = 200
    plane = np.clip(cv2.GaussianBlur(plane, (0, 0), 1.5) + rng.normal(0, 4, plane.shape), 0, 255).astype(np.uint8)
    image = np.stack([np.zeros_like(plane), plane, plane], -1)
    settings = unet.Settings(diameter_px=60.0, diameter_of="image", min_area_px=least_px, precision="float32")
    (found,) = unet.load(find_weights("starter_light"), settings)([image])
    assert (found.areas_px > 3000).sum() == 3


@given(st.lists(st.sampled_from(["a", "b", ""]), min_size=1, max_size=9), st.integers(1, 16), st.integers(0, 2**31))
def test_images_of_no_kind_are_drawn_as_often_as_if_there_were_none(kinds, count, seed):
    rng = np.random.default_rng(seed)
    drawn = [sum(not kinds[place] for place in dealt(kinds, count, rng)) for _ in range(200)]
    assert np.mean(drawn) == pytest.approx(count * kinds.count("") / len(kinds), abs=0.15)
    assert max(drawn) - min(drawn) <= 1


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=9), st.integers(1, 16), st.integers(0, 2**31))
def test_crops_are_dealt_evenly_over_kinds_and_over_the_images_of_each(kinds, count, seed):
    places = dealt(kinds, count, np.random.default_rng(seed))
    assert len(places) == count
    of_kind = Counter(kinds[place] for place in places)
    assert len(set(kinds)) > count or max(of_kind.values()) - min(of_kind[kind] for kind in set(kinds)) <= 1
    for kind in set(kinds):
        of_image = [places.count(k) for k, one in enumerate(kinds) if one == kind]
        assert max(of_image) - min(of_image) <= 1


def test_images_of_one_kind_are_drawn_as_ever():
    for count in (3, 8):
        drawn = np.random.default_rng(5).permutation(6)[:count]
        wanted = [int(drawn[k % len(drawn)]) for k in range(count)]
        assert dealt([""] * 6, count, np.random.default_rng(5)) == wanted


def test_types_are_balanced_unless_told_otherwise(drawn, narrow_start):
    records = [replace(record, cell_type="rare" if k == 2 else "common") for k, record in enumerate(drawn.records)]
    some = drawn.with_records(records).subset(range(6))
    for balance, wanted in ((True, 0.5), (False, 1 / 6)):
        config = unet.TrainSettings(base=str(narrow_start), batch_size=4, balance_types=balance)
        loss = unet_batches.loss_of(some, config, unet.uncalibrated(some, config))
        rare = [item is loss.items[2] for step in range(60) for item in loss.choose(np.random.default_rng(step))]
        assert np.mean(rare) == pytest.approx(wanted, abs=0.06)


def test_an_estimate_of_images_that_differ_is_a_first_one_and_each_is_then_looked_at_again(
    of_two_sizes, drawn, capsys, tmp_path
):
    config = LabelConfig(model="starter_light", precision="float32")
    weights_path, both = find_weights("starter_light"), [of_two_sizes.image(k) for k in range(2)]
    px = unet.estimate_diameter(weights_path, both, config)
    assert isinstance(px, First)
    found = with_diameter(config, unet, weights_path, of_two_sizes)
    assert found.diameter_of == "image" and found.diameter_px == pytest.approx(px, rel=0.2)
    assert "which differ: each image is scaled by its own" in capsys.readouterr().err
    own = weights.copy_checkpoint(weights_path, tmp_path / "tuned")
    card = json.loads(own.with_suffix(".json").read_text())
    own.with_suffix(".json").write_text(json.dumps(card | {"config": card["config"] | {"diameter_of": "image"}}))
    assert with_diameter(config, unet, own, drawn).diameter_of == "image", "as the model was scored"
    told = with_diameter(config.model_copy(update={"diameter_of": "batch"}), unet, weights_path, of_two_sizes)
    assert told.diameter_of == "batch", "what is set stays"
    alike = with_diameter(config, unet, weights_path, drawn)
    assert alike.diameter_of is None and alike.diameter_px == pytest.approx(diameter_of(drawn.instances), rel=0.3)
