"""One contract, every backend; and what is special to each."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from backend_cases import EMPTY, config_of, each, history_of, lacks
from window_cases import whole_of

from cellkit.cells.dataset import predict_all
from cellkit.cells.windows import Window
from cellkit.errors import UserError
from cellkit.models import backend_names, get_backend, if_able, threshold, unet_maps, weights
from cellkit.models.shared import cost, detector_training, fine_tuning, inputs, tiles
from cellkit.models.shared.in_windows import AsPictures
from cellkit.models.unet_network import load_network
from cellkit.scores.iou import overlaps
from cellkit.scores.kaggle import kaggle


def test_threads_wait_without_spinning_and_are_no_more_than_processors_granted(monkeypatch):
    import subprocess
    import sys

    code = "import cellkit, os; print(os.environ['OMP_WAIT_POLICY'])"
    env = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    told = [subprocess.check_output([sys.executable, "-c", code], env=env | more, text=True).strip() for more in
            ({}, {"OMP_WAIT_POLICY": "ACTIVE"})]  # fmt: skip
    assert told == ["PASSIVE", "ACTIVE"], "set by default, and left alone where it is set"
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        monkeypatch.setattr("joblib.cpu_count", lambda: 1)
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        get_backend("threshold")
        assert torch.get_num_threads() == 2
        monkeypatch.delenv("OMP_NUM_THREADS")
        get_backend("threshold")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained(drawn, tmp_path_factory):
    """A checkpoint of every backend after two steps."""
    made = {}
    for name in (name for name in backend_names() if not lacks(name)):
        out = tmp_path_factory.mktemp(name)
        made[name] = get_backend(name).train(drawn.select("train"), drawn.select("val"), config_of(name), out)
    return made


@pytest.mark.parametrize("name", each())
class TestContract:
    def test_answers(self, name, trained, drawn):
        segment = get_backend(name).load(trained[name], None)
        images = [drawn.image(0), EMPTY, drawn.image(1)]
        found = list(segment(iter(images)))
        assert [x.shape for x in found] == [image.shape[:2] for image in images]
        assert all(((x.scores >= 0) & (x.scores <= 1)).all() for x in found)
        assert all((x.areas_px > 0).all() and not x.overlapping for x in found)

    def test_same_answer_twice(self, name, trained, drawn):
        segment = get_backend(name).load(trained[name], None)
        assert list(segment([drawn.image(0)])) == list(segment([drawn.image(0)]))

    def test_same_seed_same_weights(self, name, trained, drawn, tmp_path):
        again = get_backend(name).train(drawn.select("train"), drawn.select("val"), config_of(name), tmp_path)
        first, second = weights.load_tensors(trained[name]), weights.load_tensors(again)
        assert all(torch.equal(first[k], second[k]) for k in first)

    def test_moved_settings_find_what_a_new_prediction_finds(self, name, trained, drawn):
        backend, image = get_backend(name), drawn.image(0)
        live = if_able(backend, "live", trained[name], None)
        if live is None:
            return
        (first,) = backend.load(trained[name], None)([image])
        read = live.look(image)
        assert read({}, Counter(), False) == (first, True)
        assert live.look(EMPTY)({}, Counter(), False).cells.shape == EMPTY.shape[:2]
        assert live.ranges and set(live.ranges) <= set(backend.Settings.model_fields)
        for setting, (low, high, step) in live.ranges.items():
            value = type(step)(low + step * round((high - low) / step / 3))
            moved, told = read({setting: value}, Counter(), False), Counter()
            segment = backend.load(trained[name], backend.Settings(**{setting: value}))
            assert moved == (next(segment([image])), True), setting
            assert read({setting: value}, told, True).cells == moved.cells, "a reading that was made is kept"
        assert read({}, Counter(), False) == (first, True), "and back again"
        assert not len(read({"min_area_px": 10**6}, told, False).cells)

    def test_sees_windows(self, name, trained, drawn, tmp_path):
        segment, image = get_backend(name).load(trained[name], None), drawn.image(0)
        assert not segment.whole_only
        finder = segment.in_windows(whole_of(image, tmp_path))
        found, sure = finder.find(Window(0, 0, *image.shape[:2]))
        (truth,) = segment([image])
        assert sure.all() and found.shape == truth.shape
        assert found == truth or not isinstance(finder, AsPictures), "shown the same, it finds the same"

    def test_is_a_stream(self, name, trained, drawn):
        asked = []

        def images():
            for k in range(2):
                asked.append(k)
                yield drawn.image(k)

        stream = get_backend(name).load(trained[name], None)(images())
        next(stream)
        assert asked == [0], "a backend takes images as it needs them"

    def test_missing_checkpoint(self, name, tmp_path):
        with pytest.raises(UserError, match="no checkpoint"):
            get_backend(name).load(tmp_path / "none.safetensors", None)

    def test_other_backends_checkpoint(self, name, trained):
        other = next(k for k in trained if k != name)
        with pytest.raises(UserError, match=f"is a checkpoint of {other}"):
            get_backend(name).load(trained[other], None)

    def test_what_is_too_small_is_counted(self, name, trained, drawn, capsys):
        segment = get_backend(name).load(trained[name], get_backend(name).Settings(min_area_px=10**6))
        (found,) = predict_all(segment, drawn.subset([0]))
        (alone,) = get_backend(name).load(trained[name], get_backend(name).Settings(min_area_px=1))([drawn.image(0)])
        told = "of 1 image left out: smaller than min_area_px = 1000000 px (0)" in capsys.readouterr().err
        assert not len(found) and told == (len(alone) > 0)

    def test_nothing_to_train_on(self, name, drawn, tmp_path):
        bare = drawn.subset([])
        with pytest.raises(UserError):
            get_backend(name).train(bare, drawn.select("val"), config_of(name), tmp_path)


def test_unknown_backend_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'cellpose_unet'"):
        get_backend("cellpose_unett")


# ---- threshold -----------------------------------------------------------------------------------------------------


def test_threshold_finds_two_discs():
    image = np.zeros((60, 90, 3), np.uint8)
    cv2.circle(image, (25, 30), 12, (0, 200, 0), -1)
    cv2.circle(image, (65, 30), 12, (0, 0, 200), -1)
    (found,) = threshold.load(None, threshold.Settings(diameter_px=24.0))([image])
    assert len(found) == 2 and np.all(np.abs(found.areas_px - 441) < 60)


@pytest.mark.parametrize("name", each("cellpose_unet", "maskrcnn_torchvision", "maskrcnn_detectron2"))
def test_the_weights_kept_score_what_the_history_says(name, trained, drawn):
    """The row of history.csv that was kept is the score of the checkpoint that is handed over, at the thresholds of its card."""
    backend, card = get_backend(name), weights.read_card(trained[name])
    val = drawn.select("val").subset([0])
    found = list(backend.load(trained[name], None)(val.images()))
    again = (
        kaggle([overlaps(val.instances[0], found[0])], bootstrap=0)["score"]
        if name == "cellpose_unet"
        else fine_tuning.class_score(val.instances, found, drawn.classes)
    )
    (kept,) = [row["score"] for row in history_of(trained[name]) if row["kept"]]
    assert again == pytest.approx(kept, abs=1e-6) and " on " in card.metrics["arithmetic"]


@pytest.mark.parametrize("name", each("cellpose_unet", "maskrcnn_torchvision", "maskrcnn_detectron2"))
def test_a_backend_says_what_it_costs(drawn, trained, monkeypatch, name):
    detector = name.startswith("maskrcnn")
    for module in (cost, detector_training if detector else get_backend(name)):
        monkeypatch.setattr(module, "BATCH", 1)
    start = {"start" if detector else "base": str(trained["cellpose_unet"])}
    image, truth = drawn[0]
    told = get_backend(name).cost(config_of(name, **start), image, truth)
    assert min(told.prepare_s, told.step_s, told.find_s) > 0 and told.step_bytes >= 0
    assert told.searches == (2 if name == "cellpose_unet" else 1), "the base is calibrated too"


def test_tiles_give_what_the_whole_gives(trained, drawn):
    network, _ = load_network(trained["cellpose_unet"])
    planes = inputs.two_channels(np.tile(drawn.image(0), (3, 3, 1)))
    forward = lambda planes: unet_maps.forward(network, planes)  # noqa: E731
    whole = tiles.blend_tiles(forward, planes, 1024, 128)
    tiled = tiles.blend_tiles(forward, planes, 256, 128)
    assert tiled.shape == whole.shape and np.corrcoef(tiled.ravel(), whole.ravel())[0, 1] > 0.95


@pytest.mark.parametrize(
    "name", each("cellpose_sam", "cellpose_unet", "coordinate", "maskrcnn_torchvision", "unet_border")
)
def test_a_training_is_another_where_the_labels_that_choose_are_others(name, drawn, tmp_path, monkeypatch):
    class Begun(Exception):
        pass

    def begun(*arguments):
        raise Begun(arguments[5])

    backend = get_backend(name)
    monkeypatch.setattr(detector_training if name.startswith("maskrcnn") else backend, "fit", begun)
    val = drawn.subset([len(drawn) - 1] * 12)
    val = replace(val, records=[replace(one, image_id=f"v{k}", split="val") for k, one in enumerate(val.records)])
    own, stamps = val.instances[0], []
    for cells in (own, own, own[1:], own.with_classes(3 - own.class_ids)):
        with pytest.raises(Begun) as stamp:
            backend.train(drawn.subset([0]), replace(val, instances=[cells] * 12), config_of(name), tmp_path)
        stamps.append(str(stamp.value))
    assert stamps[0] == stamps[1] and len(set(stamps)) == 3
