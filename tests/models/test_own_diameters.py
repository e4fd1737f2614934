"""Images whose cells differ in size: each is scaled by its own diameter, in training as when predicted; and types take turns."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.config.sections import LabelConfig
from cellkit.fetch.find import find_weights
from cellkit.labelling.annotate import with_diameter
from cellkit.models import cellpose_unet as unet
from cellkit.models import unet_batches, weights
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
    settings = unet._uncalibrated(of_two_sizes, config)
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
    assert unet._uncalibrated(of_two_sizes, told)["diameter_of"] == "batch", "a diameter that is set is every image's"
    told = unet.TrainSettings(diameter_of="batch")
    assert unet._uncalibrated(of_two_sizes, told)["diameter_of"] == "batch"
    assert unet._searched(told, unet._uncalibrated(of_two_sizes, told))[0] != "diameter_of"
    alike = unet._uncalibrated(drawn, unet.TrainSettings())
    assert (alike["diameter_of"], alike["diameter_px"]) == ("batch", diameter_of(drawn.instances))


def test_a_training_of_two_sizes_is_scored_and_handed_on_at_the_own_diameters(of_two_sizes, tmp_path, narrow_start):
    config = unet.TrainSettings(base=str(narrow_start), steps=1, batch_size=2, crop_px=64, search_images=2)
    card = weights.read_card(unet.train(of_two_sizes, of_two_sizes.subset([]), config, tmp_path / "out"))
    assert card.config["diameter_of"] == "image", "where nothing is found right, as it was trained"


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
        loss = unet_batches.loss_of(some, config, unet._uncalibrated(some, config))
        rare = [item is loss.items[2] for step in range(60) for item in loss.choose(np.random.default_rng(step))]
        assert np.mean(rare) == pytest.approx(wanted, abs=0.06)


def test_an_estimate_of_images_that_differ_is_a_first_one_and_each_is_then_looked_at_again(of_two_sizes, drawn, capsys):
    config = LabelConfig(model="starter_light", precision="float32")
    weights_path, both = find_weights("starter_light"), [of_two_sizes.image(k) for k in range(2)]
    px = unet.estimate_diameter(weights_path, both, config)
    assert isinstance(px, First)
    found = with_diameter(config, unet, weights_path, of_two_sizes)
    assert found.diameter_of == "image" and found.diameter_px == pytest.approx(px, rel=0.2)
    assert "which differ: each image is scaled by its own" in capsys.readouterr().err
    told = with_diameter(config.model_copy(update={"diameter_of": "batch"}), unet, weights_path, of_two_sizes)
    assert told.diameter_of == "batch", "what is set stays"
    alike = with_diameter(config, unet, weights_path, drawn)
    assert alike.diameter_of is None and alike.diameter_px == pytest.approx(diameter_of(drawn.instances), rel=0.3)
