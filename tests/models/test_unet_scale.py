"""At what scale the U-Net is trained: that at which it is read; and cells that are smaller than what Cellpose reads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.models import cellpose_unet as unet
from cellkit.models import unet_batches, weights
from cellkit.models.shared import inputs
from cellkit.models.unet_maps import at_network_scale
from cellkit.models.unet_network import cell_px_of, load_network, load_start


def discs(folder, sides, diameter_px, count=9):
    """Return images of bright discs, one data set; each of `sides` px."""
    folder.mkdir(parents=True, exist_ok=True)
    records, cells = [], []
    for k, side in enumerate(sides):
        rows, columns = np.mgrid[:side, :side]
        labels, per_row = np.zeros((side, side), np.int32), int(np.sqrt(count))
        for cell in range(count):
            y, x = (side * (2 * place + 1) // (2 * per_row) for place in divmod(cell, per_row))
            labels[(rows - y) ** 2 + (columns - x) ** 2 < (diameter_px / 2) ** 2] = cell + 1
        picture = np.where(labels > 0, 200, 20 + k).astype(np.uint8)
        Image.fromarray(np.stack([picture] * 3, -1)).save(folder / f"{k}.png")
        records.append(ImageRecord(str(k), f"{k}.png", side, side, split="train"))
        cells.append(Instances.from_labels(labels))
    return CellDataset(records, cells, root=folder)


@pytest.fixture
def knows_17_px(tmp_path):
    """Weights whose cells are 17 px wide at network scale, as those of Cellpose's ``nuclei``."""
    network = load_start("scratch", 3, (4, 8, 12, 16))
    network.diam_mean.data = torch.tensor([17.0])
    card = {**unet.DEFAULTS, "diameter_px": 17.0, **network.config}
    return weights.save_checkpoint(tmp_path / "nuclei.safetensors", network.state_dict(), unet.NAME, config=card)


def test_training_and_reading_are_of_one_scale_whatever_the_network_knows(knows_17_px, narrow_start, tmp_path):
    data, replayed = discs(tmp_path / "images", [120, 100], 29.8), []
    for path, cell_px in ((knows_17_px, 17.0), (narrow_start, 30.0)):
        assert cell_px_of(path) == cell_px
        config = unet.TrainSettings(base=str(path), steps=1, replay_share=0.2)
        settings = unet.uncalibrated(data, config)
        loss = unet_batches.loss_of(data, config, settings)
        network = load_network(path)[0]
        for k, item in enumerate(loss.items):
            read = at_network_scale(network, data.image(k), settings["diameter_px"], "both", settings["normalise"])
            assert item.planes.shape == read.shape and np.allclose(item.planes, read, atol=1e-5)
        wide = [np.sqrt(item.target[2].sum() / 9 * 4 / np.pi) for item in loss.items]
        assert wide == pytest.approx([cell_px] * 2, rel=0.1)
        assert unet.ceiling(data, config) > 0.9
        replayed.append([item.planes.shape[1] for item in loss.replay])
    assert replayed[0] == pytest.approx(np.array(replayed[1]) * 17 / 30, rel=0.02), "drawn cells too"


def test_memory_is_that_of_the_scale_the_network_knows(knows_17_px, monkeypatch):
    asked = unet.load(knows_17_px).bytes_for((1000, 1000))
    assert asked == 1e6 * unet.BYTES_PER_PX, "images of cells 17 px wide are not enlarged"
    assert unet.live(knows_17_px).bytes_for((1000, 1000)) == asked
    told = []
    monkeypatch.setattr(inputs, "check_memory", lambda what, needed, why: told.append(needed))
    one = CellDataset([ImageRecord("a", "a.png", 1000, 1000)], [Instances.empty((1000, 1000))])
    inputs.ask_for_memory(one, one.subset([]), [34.0], 4, 10, cell_px=17.0)
    assert told == [inputs.bytes_for((1000, 1000), 34.0, 10, 17.0) + 1_000_000]


def test_cells_of_a_few_pixels_are_read_while_they_are_trained_on(narrow_start, tmp_path):
    data = discs(tmp_path / "images", [64, 64], 4.2, count=25)
    assert max(cells.areas_px.max() for cells in data.instances) < 15, "smaller than what Cellpose keeps"
    config = unet.TrainSettings(base=str(narrow_start))
    assert unet.uncalibrated(data, config)["min_area_px"] < 5
    assert unet.ceiling(data, config) > 0.9
    assert unet.uncalibrated(discs(tmp_path / "large", [64], 20), config)["min_area_px"] == 15
    assert unet.uncalibrated(data, config.model_copy(update={"min_area_px": 7}))["min_area_px"] == 7


def test_a_training_begins_anew_where_the_labels_that_choose_have_changed(narrow_start, tmp_path, capsys):
    train = discs(tmp_path / "train", [64], 16)
    val = discs(tmp_path / "val", [64] * 13, 16)
    val = val.with_records([replace(record, split="val", image_id=f"v{k}") for k, record in enumerate(val.records)])
    config = unet.TrainSettings(
        base=str(narrow_start), steps=2, eval_every=1, crop_px=64, batch_size=1, search_images=1, val_images=2, seed=1
    )
    out = tmp_path / "out"
    unet.train(train, val, config, out)
    capsys.readouterr()
    unet.train(train, val, config, out)
    assert "resumed at step 2 of 2" in capsys.readouterr().err, "the same again is not trained again"
    empty = replace(val, instances=[cells[:0] for cells in val.instances])
    unet.train(train, empty, config, out)
    assert "resumed" not in capsys.readouterr().err
