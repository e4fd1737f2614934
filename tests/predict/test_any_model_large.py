"""Models that see pictures, on an image read window by window: the cells of the whole image, each once, in its light."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from window_cases import whole_of

from cellkit.cells.instances import Instances
from cellkit.cells.windows import Window
from cellkit.models import maskrcnn_detect, maskrcnn_windows
from cellkit.models.cell_classes import named_by
from cellkit.models.shared.contract import BatchSegmenter, Segmenter
from cellkit.models.shared.detector_settings import DEFAULTS
from cellkit.models.shared.fusion import fuse, fused
from cellkit.models.shared.routing import class_vote, routed, style_vote, with_classes_of
from cellkit.models.shared.whole_light import in_light_of, percentiles
from cellkit.predict import large
from cellkit.scores.iou import overlaps

SIDE = 70


def scene(seed: int, shape: tuple[int, int] = (170, 230)) -> np.ndarray:
    """Bright ellipses on noise, brighter to the right, some long and some across the edge of the image."""
    rng, image = np.random.default_rng(seed), np.zeros((*shape, 3), np.uint8)
    y, x = np.mgrid[: shape[0], : shape[1]]
    values = rng.normal(20, 2, shape)
    for k in range(45):
        (cy, cx), (a, b) = rng.uniform((0, 0), shape), rng.uniform(3, 7, 2) * (1, 4 if k % 9 == 0 else 1)
        inside = ((y - cy) / a) ** 2 + ((x - cx) / b) ** 2 < 1
        values[inside] = 60 + 150 * cx / shape[1]
    image[..., 2] = np.clip(values, 0, 255)
    return image


def bright(share: float, least_px: int = 12):
    """Return what finds the connected pixels above a share of the way between two percentiles; bright ones are of class 2."""

    def find(image: np.ndarray, left_out) -> Instances:
        low, high = percentiles(image[..., 2], 2, (5, 99))
        labels, count = ndimage.label(image[..., 2] > low + share * (high - low))
        light = ndimage.mean(image[..., 2], labels, np.arange(1, count + 1)) if count else np.zeros(0)
        found = Instances.from_labels(labels, 1 + (light > low + 0.7 * (high - low)), light / 255)
        left_out["small"] += int((found.areas_px < least_px).sum())
        return found[found.areas_px >= least_px]

    return find


def model(share: float = 0.15) -> Segmenter:
    return Segmenter(bright(share), {"diameter_px": 12.0})


def in_windows(segment: Segmenter, image: np.ndarray, folder: Path, side: int = SIDE) -> Instances:
    """Find, join and paint as a prediction does."""
    finder, shape = segment.in_windows(whole_of(image, folder)), image.shape[:2]
    todo = large.windows_with_parts(folder, shape, side)
    for core, path in todo:
        large.write_part(path, *large.cells_of_window(finder, core, shape))
    parts = [path for _, path in todo]
    cells = large.joined_cells([core for core, _ in todo], parts, shape)
    painted = large.paint_labels(folder / "labels.zarr", parts, cells, shape)[...]
    return Instances.from_labels(painted, cells.class_ids, cells.scores)


def by_first_pixel(found: Instances) -> Instances:
    return found[np.argsort(found.starts[found.offsets[:-1]])]


def same(one: Instances, other: Instances) -> bool:
    runs = all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("starts", "lengths", "class_ids"))
    return runs and np.allclose(one.scores, other.scores, atol=1e-6)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**31), st.integers(40, 200))
def test_any_model_finds_each_cell_whole_and_once(tmp_path_factory, seed, side):
    image = scene(seed)
    (truth,) = model()([image])
    assert same(in_windows(model(), image, tmp_path_factory.mktemp("w"), side), by_first_pixel(truth))


def test_what_a_model_leaves_out_by_itself_is_said(tmp_path):
    image = scene(1)
    segment = Segmenter(bright(0.15, 200), {"diameter_px": 12.0})
    next(segment([image]))
    small = segment.left_out.pop("small")
    in_windows(segment, image, tmp_path)
    told = large.left_out_of(sorted(tmp_path.glob("*.npz")))
    ((why, cells),) = told.items()
    assert why.startswith("small (counted in windows that overlap") and cells >= small > 0


def test_a_model_of_batches_and_several_fused(tmp_path):
    image, parts = scene(2), (model(0.15), model(0.4))
    founds = [next(part([image])) for part in parts]
    batch = BatchSegmenter(lambda images: ((bright(0.15)(i, left := {"small": 0}), left) for i in images), {})
    truth = by_first_pixel(fuse(founds, [2, 1]))
    assert same(in_windows(fused([batch, parts[1]], [2, 1]), image, tmp_path), truth)


def test_classes_are_given_in_the_light_of_the_whole(tmp_path):
    image = scene(3)

    def named(picture: np.ndarray, cells: Instances) -> Instances:
        (middle,) = percentiles(picture[..., 2], 2, (95,))
        light = np.array([picture[..., 2][cells.mask(k)].mean() for k in range(len(cells))])
        return cells.with_classes(1 + (light > middle).astype(int))

    segment = with_classes_of(named_by(model(), named), ("dim", "lit"), ("lit", "other", "dim"))
    (truth,) = segment([image])
    assert len(np.unique(truth.class_ids)) == 2
    assert same(in_windows(segment, image, tmp_path), by_first_pixel(truth))


@pytest.mark.parametrize("by", ["class", "style"])
def test_an_image_goes_to_the_model_of_its_kind_as_a_whole(tmp_path, by):
    image = scene(4)
    style = lambda pictures: np.array([[float(p[..., 2].mean()), 30.0] for p in pictures])  # noqa: E731
    examples = np.array([[1.0, 0.0], [0.0, 1.0]])
    vote = class_vote(model(), ("a", "b")) if by == "class" else style_vote(style, examples, ["a", "b"])
    segment = routed(vote, {"a": model(0.15), "b": model(0.5)}, "a")
    (truth,) = segment([image])
    assert same(in_windows(segment, image, tmp_path), by_first_pixel(truth))
    with in_light_of(whole_of(image, tmp_path).light):
        assert {vote(image[:, left : left + 60]) for left in (0, 170)} == {"a", "b"}, "parts of it are of either kind"
    (tmp_path / "c").mkdir()
    segment = routed(vote, {"c": model(0.15)}, "c", ("c", "a", "b"), {"c"})
    (truth,) = segment([image])
    assert set(truth.class_ids.tolist()) in ({2}, {3}), "the kind that was voted, not that of the model that took it"
    assert same(in_windows(segment, image, tmp_path / "c"), by_first_pixel(truth))
    note, finder = list(segment.left_out)[-1], segment.in_windows(whole_of(image, tmp_path / "c"))
    finder.find(Window(0, 0, 60, 60))
    assert "left to the model of c" in note and finder.left_out[note] == 1


class Perfect:
    """A detector without fault: the bright parts of a tile, as boxes with masks; of two classes by their brightness."""

    roi_heads = SimpleNamespace(score_thresh=0.1, nms_thresh=0.5, take_counts=lambda: (0, 0))

    @staticmethod
    def forward(model, planes: np.ndarray):
        labels, count = ndimage.label(planes[2] > 0.2)
        boxes, scores, masks = np.zeros((count, 4)), np.zeros(count), np.zeros((count, 28, 28), np.float32)
        for k, (rows, columns) in enumerate(ndimage.find_objects(labels)):
            boxes[k] = columns.start, rows.start, columns.stop, rows.stop
            scores[k] = min(planes[2, rows, columns].max() / 1.5, 1)
            masks[k] = cv2.resize((labels[rows, columns] == k + 1).astype(np.float32), (28, 28))
        return boxes, scores, masks, None

    @staticmethod
    def logits(seen, places: np.ndarray) -> np.ndarray:
        bright = seen.found[places].scores > 0.3
        return np.stack([~bright, bright], axis=1).astype(np.float32)


@pytest.mark.parametrize("by_line", [None, {"1": {"score_threshold": 0.25}, "2": {"score_threshold": 0.4}}])
def test_a_detector_sees_the_tiles_of_the_whole_image(tmp_path, monkeypatch, by_line):
    for module in (maskrcnn_detect, maskrcnn_windows):
        monkeypatch.setattr(module, "TILE_PX", 96)
        monkeypatch.setattr(module, "OVERLAP_PX", 32)
        monkeypatch.setattr(module, "forward", Perfect.forward)
    monkeypatch.setattr(maskrcnn_detect.SeenByDetector, "_logits_of", Perfect.logits)
    used = {"diameter_px": 30.0, "by_line": by_line, "score_threshold": 0.12, "flips": 1, "max_detections": None}
    segment = maskrcnn_windows.segmenter(Perfect, DEFAULTS | used, 1)
    image = scene(5, (200, 260))
    (truth,) = segment([image])
    assert len(truth) > 10 and len(np.unique(truth.class_ids)) == (1 if by_line else 2)
    found = in_windows(segment, image, tmp_path, 120)
    best = np.zeros(len(truth))
    pairs = overlaps(truth, found)
    np.maximum.at(best, pairs.truth, pairs.iou)
    assert len(found) == len(truth) and (best > 0.9).all() and (best == 1).mean() > 0.8
    assert same(in_windows(segment, image, tmp_path, 120), found), "tiles and line are kept"
