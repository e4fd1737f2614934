"""One contract, every backend; and what is special to each."""

from __future__ import annotations

import csv
import os

import cv2
import numpy as np
import pytest
import torch
from conftest import write_png

from cellkit import machine
from cellkit.cells.dataset import CellDataset, predict_all
from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.errors import UserError
from cellkit.fetch.find import find_weights
from cellkit.machine import arithmetic
from cellkit.models import backend_names, get_backend, threshold, unet_maps, unet_search, weights
from cellkit.models import cellpose_unet as unet
from cellkit.models import maskrcnn_torchvision as maskrcnn
from cellkit.models.maskrcnn_network import target
from cellkit.models.shared import cost, diameter, fine_tuning, flow_loss, flows, inputs, tiles
from cellkit.models.shared.inputs import random_warp
from cellkit.models.shared.tiles import paste
from cellkit.models.unet_network import CellposeUNet, load_network
from cellkit.scores.iou import overlaps
from cellkit.scores.kaggle import kaggle
from cellkit.scores.matching import count

EMPTY = np.zeros((96, 80, 3), np.uint8)


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


FEW = {
    "threshold": {},
    "cellpose_unet": {
        "base": "scratch",
        "flow_threshold": 0.4,
        "cellprob_threshold": 0.0,
        "min_area_px": 15,
        "diameter_of": "batch",
    },
    "maskrcnn_torchvision": {
        "start": "scratch",
        "freeze_backbone": False,
        "fpn_channels": 16,
        "score_threshold": 0.5,
        "nms_threshold": 0.5,
    },
}
STEPS = {"steps": 2, "batch_size": 2, "crop_px": 64, "warmup_steps": 1, "eval_every": 2, "val_images": 1}


def config_of(name: str, **changes):
    """The settings of a training of two steps."""
    return get_backend(name).TrainSettings(**(FEW[name] | (STEPS if name != "threshold" else {}) | changes))


@pytest.fixture(scope="module")
def trained(drawn, tmp_path_factory):
    """A checkpoint of every backend after two steps."""
    made = {}
    for name in backend_names():
        out = tmp_path_factory.mktemp(name)
        made[name] = get_backend(name).train(drawn.select("train"), drawn.select("val"), config_of(name), out)
    return made


@pytest.mark.parametrize("name", backend_names())
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
        other = next(k for k in backend_names() if k != name)
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


def test_the_loosest_threshold_is_tried_first_and_nothing_else_where_it_finds_nothing_right(capsys):
    tried = []

    def search(values, loosest):
        def score(key, value):
            tried.append((key, value))
            return values.get(value, 0.0)

        grid, best = {"a": (1.0, 2.0, 0.0), "b": (3.0, 4.0)}, {"a": 0.0, "b": 9.0}
        return fine_tuning.search(score, grid, best, 5, "MAP IoU", loosest, "Try another base.")

    assert search({}, {"a": 0.0}) == {"a": 1.0, "b": 3.0} and tried == [("a", 0.0)]
    told = capsys.readouterr().err
    assert "a 0: no cell of 5 training images is right, so no threshold is searched. Try another base." in told
    tried.clear()
    assert search({2.0: 0.5, 0.0: 0.5, 4.0: 0.1}, {"a": 0.0}) == {"a": 2.0, "b": 4.0}
    assert tried == [("a", 0.0), ("a", 1.0), ("a", 2.0), ("b", 3.0), ("b", 4.0)]
    assert "a 2, by MAP IoU on 5 training images (1: 0.000, 2: 0.500, 0: 0.500)" in capsys.readouterr().err
    tried.clear()
    assert search({}, {}) == {"a": 1.0, "b": 3.0} and tried == [("a", 1.0), ("a", 2.0), ("a", 0.0)]


def test_a_base_that_is_never_right_is_read_once_with_the_flow_check_off(drawn, monkeypatch, capsys):
    maps = np.zeros((3, 32, 32), np.float32)
    maps[2] = 6.0
    read = []

    def nothing(maps, truth, *thresholds):
        read.append(thresholds)
        return np.zeros([len(values) for values in thresholds])

    monkeypatch.setattr(unet_search, "predict_maps", lambda *args: maps)
    monkeypatch.setattr(unet_search, "score_maps", nothing)
    settings = {**unet.DEFAULTS, "diameter_px": 30.0}
    searched = ("flow_threshold", "cellprob_threshold")
    found = unet_search.search_settings(None, [drawn[0]], settings, searched)
    assert found == ({"flow_threshold": 0.4, "cellprob_threshold": 0.0}, {})
    assert read == [((0.0,), (0.0,), (0,))]
    told = capsys.readouterr().err
    assert "the network finds no cell right in 1 training image, so nothing is searched" in told
    assert "finetune.base: cyto3), finetune.diameter_px (now 30) or finetune.channels" in told


def history_of(checkpoint) -> list[dict[str, float]]:
    with open(checkpoint.parent / "history.csv", newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


@pytest.mark.parametrize("name", ["cellpose_unet", "maskrcnn_torchvision"])
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
    read_at = weights.read_card(tuned).metrics["read_at"]
    assert read_at == {"diameter_of": "batch", "flow_threshold": 0.4, "cellprob_threshold": 0.0, "min_area_px": 15}
    val = drawn.select("val").subset([0])
    base = unet.load(find_weights("starter"), unet.Settings(diameter_px=30.0, **read_at))
    (found,) = base(val.images())
    score = kaggle([overlaps(val.instances[0], found)], bootstrap=0)["score"]
    assert history_of(tuned)[0]["score"] == pytest.approx(score, abs=1e-6) and score > 0.3


def cells_in(precision: str, image: np.ndarray) -> Instances:
    return next(unet.load(find_weights("starter"), unet.Settings(diameter_px=30.0, precision=precision))([image]))


def matched(one: Instances, other: Instances) -> float:
    """Return F1 at IoU 0.5."""
    return 2 * count(overlaps(one, other), [0.5]).tp[0] / (len(one) + len(other))


def test_the_same_cells_in_either_arithmetic_and_on_two_threads(drawn):
    told = {precision: cells_in(precision, drawn.image(0)) for precision in ("float32", "bfloat16")}
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    two = cells_in("float32", drawn.image(0))
    torch.set_num_threads(threads)
    for other in (told["bfloat16"], two):
        assert matched(told["float32"], other) >= 0.99


@pytest.mark.parametrize("has", [True, False])
def test_float32_is_float32_and_auto_what_the_processor_has(drawn, monkeypatch, capsys, has):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has, raising=False)
    machine._say_slow.cache_clear()
    planes, maps = torch.from_numpy(inputs.two_channels(drawn.image(0)[:64, :64]))[None], {}
    for precision in ("auto", "float32", "bfloat16"):
        network, _ = load_network(find_weights("starter"), precision)
        with torch.no_grad():
            plain = network(planes.contiguous(memory_format=torch.channels_last))[0].numpy()
        maps[precision] = unet_maps._forward(network, planes[0].numpy())
        assert np.array_equal(maps[precision], plain) is (str(network.arithmetic) == "float32 on cpu")
    assert np.array_equal(maps["auto"], maps["bfloat16" if has else "float32"])
    assert capsys.readouterr().err.count("has to imitate") == (not has), "said once, where it is slow"


def test_the_precision_of_a_training_is_in_the_card_and_its_predictions(drawn, tmp_path):
    config = config_of("cellpose_unet", base=str(find_weights("starter")), steps=1, eval_every=1, precision="float32")
    checkpoint = unet.train(drawn.subset([0]), drawn.select("val").subset([0]), config, tmp_path)
    card = weights.read_card(checkpoint)
    assert card.config["precision"] == "float32" and card.metrics["arithmetic"] == "float32 on cpu"
    assert str(load_network(checkpoint)[0].arithmetic) == "float32 on cpu"


def test_bfloat16_is_refused_where_it_would_not_be_meant():
    config = config_of("maskrcnn_torchvision", backbone="resnet50_fpn_v2", start="scratch", precision="bfloat16")
    with pytest.raises(UserError, match="resnet50_fpn_v2 computes in float32"):
        maskrcnn.check(config)


@pytest.mark.skipif(arithmetic().number_type != "bfloat16", reason="bfloat16 is imitated here: see the test before")
def test_bfloat16_of_this_processor_finds_the_cells_of_float32(drawn):
    pairs = [[cells_in(precision, image) for precision in ("float32", "bfloat16")] for image in drawn.images()]
    assert np.mean([matched(*pair) for pair in pairs if len(pair[0])]) >= 0.99


@pytest.mark.parametrize("name", ["cellpose_unet", "maskrcnn_torchvision"])
def test_a_backend_says_what_it_costs(drawn, trained, monkeypatch, name):
    for module in (cost, get_backend(name)):
        monkeypatch.setattr(module, "BATCH", 1)
    start = {"start" if name == "maskrcnn_torchvision" else "base": str(trained["cellpose_unet"])}
    image, truth = drawn[0]
    told = get_backend(name).cost(config_of(name, **start), image, truth)
    assert min(told.prepare_s, told.step_s, told.find_s) > 0 and told.step_bytes >= 0
    assert told.searches == (2 if name == "cellpose_unet" else 1), "the base is calibrated too"


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


def test_tiles_give_what_the_whole_gives(trained, drawn):
    network, _ = load_network(trained["cellpose_unet"])
    planes = inputs.two_channels(np.tile(drawn.image(0), (3, 3, 1)))
    forward = lambda planes: unet_maps._forward(network, planes)  # noqa: E731
    whole = tiles.blend_tiles(forward, planes, 1024, 128)
    tiled = tiles.blend_tiles(forward, planes, 256, 128)
    assert tiled.shape == whole.shape and np.corrcoef(tiled.ravel(), whole.ravel())[0, 1] > 0.95


def test_diameter_is_cellposes():
    from cellpose.utils import diameters

    labels = np.zeros((50, 50), np.int32)
    labels[5:15, 5:15], labels[20:44, 20:40] = 1, 2
    assert diameter.diameter_of([Instances.from_labels(labels)]) == pytest.approx(diameters(labels)[0])


def discs(diameter_px: int, side_px: int) -> np.ndarray:
    """A picture full of discs, with the noise of a camera in and around them."""
    rng = np.random.default_rng(diameter_px)
    yy, xx = np.mgrid[:side_px, :side_px]
    image = rng.integers(0, 25, (side_px, side_px, 3)).astype(np.uint8)
    step = round(diameter_px * 1.4)
    for y in range(step // 2, side_px, step):
        for x in range(step // 2, side_px, step):
            away = (yy - y) ** 2 + (xx - x) ** 2
            image[away <= (diameter_px / 2) ** 2, 1] = 150 + rng.integers(0, 20, (away <= (diameter_px / 2) ** 2).sum())
            image[away <= (diameter_px / 4) ** 2, 2] = 200
    return image


@pytest.mark.parametrize(("diameter_px", "side_px"), [(6, 64), (90, 256)])
def test_the_diameter_is_estimated_from_small_to_large(diameter_px, side_px, capsys):
    estimate = unet.estimate_diameter(find_weights("starter"), [discs(diameter_px, side_px)])
    assert estimate == pytest.approx(diameter_px, rel=0.2) and "doubtful" not in capsys.readouterr().err


def test_a_diameter_of_nothing_is_doubted(capsys):
    nothing = lambda image, diameter_px: Instances.empty(image.shape[:2])  # noqa: E731
    assert diameter.estimate(nothing, [np.zeros((64, 64, 3), np.uint8)]) == 30.0
    assert "no cell is found at any diameter; 30 px is taken" in capsys.readouterr().err


def test_a_diameter_is_estimated_on_crops(monkeypatch):
    """The largest picture the network sees is eight cells wide and its frame, whatever the image's size."""
    seen = []
    monkeypatch.setattr(
        unet_maps, "_forward", lambda network, planes: seen.append(planes.shape) or np.full_like(planes[[0, 0, 0]], -6)
    )
    unet.estimate_diameter(find_weights("starter"), [np.zeros((3000, 2000, 3), np.uint8)])
    assert len(seen) == len(diameter.ASSUMED_PX) and max(max(shape) for shape in seen) <= 8 * 30 + 8 + 2 * 16


# ---- maskrcnn ------------------------------------------------------------------------------------------------------
def test_paste_puts_a_mask_exactly():
    mask = np.ones((1, 28, 28), np.float32)
    found = paste(mask, np.array([[10.0, 20.0, 30.0, 50.0]]), (100, 100), 0.5)
    assert found.boxes_xywh.tolist() == [[10, 20, 20, 30]] and found.areas_px.tolist() == [600]


def test_paste_is_clipped_and_survives_boxes_outside():
    masks = np.ones((3, 28, 28), np.float32)
    boxes = np.array([[-5.0, -5.0, 5.0, 5.0], [200.0, 200.0, 220.0, 220.0], [3.0, 3.0, 3.2, 3.2]])
    found = paste(masks, boxes, (50, 50), 0.5)
    assert found.areas_px[0] == 25 and found.areas_px[1] == 0 and len(found) == 3


def test_cells_of_unknown_class_train_boxes_and_masks():
    labels = np.zeros((40, 40), np.int32)
    labels[2:12, 2:12], labels[20:32, 20:32] = 1, 2
    made = target(labels, np.array([0, 2, 0]), ignore_unknown=True)
    assert made["labels"].tolist() == [1, 1] and made["boxes"].tolist() == [[2, 2, 12, 12], [20, 20, 32, 32]]
    assert target(labels, np.array([0, 2, 0]), ignore_unknown=False)["boxes"].tolist() == [[2, 2, 12, 12]]


def test_crops_without_any_cell_have_a_finite_loss_and_gradient(drawn):
    from cellkit.models.maskrcnn_network import build

    image, nothing = drawn.image(0), Instances.empty((128, 128))
    model = build({**maskrcnn.DEFAULTS, "fpn_channels": 16}, classes=2).train()
    config = config_of("maskrcnn_torchvision", batch_size=1)
    losses = {model: maskrcnn._Loss(model, [maskrcnn.scaled(image, nothing, 12.0)], config)}
    network = CellposeUNet().train()
    losses[network] = flow_loss.FlowLoss(
        network, [flow_loss.prepare(image, nothing, 30.0)], batch_size=1, crop_px=64, seed=0
    )
    assert not losses[network].batch(0)[1].any(), "no cell in the crop"
    for module, loss_at in losses.items():
        loss = loss_at(0)
        loss.backward()
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        assert torch.isfinite(loss) and loss > 0 and all(torch.isfinite(g).all() for g in gradients)
        assert any(g.any() for g in gradients), "an image without cells teaches what is none"


def test_a_class_that_is_neither_there_nor_found_does_not_count():
    empty, labels = Instances.empty((12, 12)), np.zeros((12, 12), int)
    labels[2:8, 2:8] = 1
    cell = Instances.from_labels(labels, class_ids=[1])
    assert fine_tuning.class_score([cell, empty], [cell, empty], ("HEK", "N2a")) == 1
    assert fine_tuning.class_score([cell, empty], [cell, cell.with_classes([2])], ("HEK", "N2a")) == 0.5
    assert fine_tuning.class_score([empty], [empty], ("HEK", "N2a")) == 0


def test_what_a_tile_may_report_grows_with_the_crowd_and_proposals_with_the_area():
    from torchvision.models.detection.image_list import ImageList

    from cellkit.models.maskrcnn_network import build

    settings = {**maskrcnn.DEFAULTS, "fpn_channels": 16}
    model = build(settings, classes=2).eval()
    assert model.roi_heads.detections_per_img == 1000
    assert build(settings | {"tile_detections": 2500}, 2).roi_heads.detections_per_img == 2500
    for most in (50, 4000):  # proposals must not run out before the cells do
        model = build(settings | {"max_detections": most}, 2).eval()
        features = {k: torch.zeros(1, 16, 768 // n, 768 // n) for k, n in (("1", 4), ("2", 8))}
        proposals, _ = model.rpn(ImageList(torch.zeros(1, 3, 768, 768), [(768, 768)]), features)
        assert model.roi_heads.detections_per_img == most
        assert model.rpn.pre_nms_top_n() == model.rpn.post_nms_top_n() == 768 * 768 // 60 >= len(proposals[0])
    model.rpn(ImageList(torch.zeros(1, 3, 96, 96), [(96, 96)]), {k: v[..., :24, :24] for k, v in features.items()})
    assert model.rpn.post_nms_top_n() == 2000


def untrained(tmp_path):
    """A Mask R-CNN of random numbers, as a checkpoint."""
    from cellkit.models.maskrcnn_network import build

    settings = {**maskrcnn.DEFAULTS, "fpn_channels": 16, "diameter_px": 12.0, "min_area_px": 1}
    torch.manual_seed(0)
    tensors = build(settings, classes=2).state_dict()
    path = tmp_path / "m.safetensors"
    return weights.save_checkpoint(path, tensors, maskrcnn.NAME, classes=("HEK", "N2a"), config=settings)


def test_a_limit_of_detections_is_named_with_the_image(drawn, tmp_path, capsys):
    limited = maskrcnn.load(untrained(tmp_path), maskrcnn.Settings(max_detections=3, score_threshold=0.0))
    (found,) = predict_all(limited, drawn.subset([2]))
    assert len(found) <= 3
    told = capsys.readouterr().err
    assert (
        "cells of 1 image left out: more than 3 in a tile of 768 px at network scale; raise max_detections (2)" in told
    )


def test_resnet_trains_a_step(drawn, tmp_path):
    few = {"steps": 1, "eval_every": 1, "batch_size": 1, "max_detections": 20}
    config = config_of("maskrcnn_torchvision", backbone="resnet50_fpn_v2", **few)
    checkpoint = maskrcnn.train(drawn.select("train"), drawn.select("val"), config, tmp_path)
    card = weights.read_card(checkpoint)
    assert (card.config["backbone"], card.metrics["start"]) == ("resnet50_fpn_v2", "scratch")
    (found,) = maskrcnn.load(checkpoint)([drawn.image(0)])
    assert found.shape == (128, 128)


def test_frozen_encoder_from_scratch_is_refused(drawn, tmp_path):
    with pytest.raises(UserError, match="freeze_backbone"):
        config = config_of("maskrcnn_torchvision", freeze_backbone=True)
        maskrcnn.train(drawn.select("train"), drawn.select("val"), config, tmp_path)


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
