"""A network asked for coordinates: a map is what its points are, cells that touch come apart, odd images do not matter."""

from __future__ import annotations

from collections import Counter

import cv2
import numpy as np
import torch
from backend_cases import config_of
from hypothesis import given
from hypothesis import strategies as st

from cellkit.cells.instances import Instances
from cellkit.models import coordinate, weights
from cellkit.models.coordinate_cells import Seen, grow, in_image, peaks, point_score, search_outline, search_peaks
from cellkit.models.coordinate_network import (
    NEGATIVES,
    POSITIVES,
    CoordinateLoss,
    Item,
    built,
    depths,
    drawn_places,
    pixel_centres,
    prepare,
    turned,
)
from cellkit.scores.point import centre_points


def discs(*circles: tuple[int, int, int], shape=(96, 120)) -> tuple[np.ndarray, Instances]:
    """An image with bright nuclei at (x, y, radius), and their truth."""
    image, labels = np.full((*shape, 3), 20, np.uint8), np.zeros(shape, np.int32)
    for number, (x, y, radius) in enumerate(circles, 1):
        cv2.circle(image, (x, y), radius, (20, 20, 180), -1)
        cv2.circle(labels, (x, y), radius, number, -1)
    return image, Instances.from_labels(labels)


TOUCHING = ((36, 40, 12), (61, 40, 12), (90, 70, 10))
DEFAULT = dict.fromkeys(("peak_threshold", "blur_px", "peak_distance_px"))


# ---- the network -----------------------------------------------------------------------------------------------------
def test_a_map_is_what_each_of_its_points_is():
    network = built(0, "float32").eval()
    planes = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 2, 48, 48)).astype(np.float32))
    with torch.no_grad():
        whole = network.map(planes)
        asked = network(planes, pixel_centres(48)[None].expand(2, -1, -1)).reshape(2, 48, 48)
        elsewhere = network(planes, pixel_centres(48)[None].flip(1).expand(2, -1, -1)).reshape(2, 48, 48)
    assert whole.std() > 1e-3 and torch.allclose(whole, asked, atol=1e-5)
    assert torch.allclose(whole, elsewhere.flip(1, 2), atol=1e-5), "the order of the questions does not matter"


@given(st.integers(0, 99), st.sampled_from(["cells", "none", "all", "in part"]))
def test_what_is_asked_in_training_is_annotated(seed, kind):
    rng = np.random.default_rng(seed)
    labels = rng.integers(1, 4, (32, 32)).astype(np.int32) if kind == "all" else np.zeros((32, 32), np.int32)
    if kind in ("cells", "in part"):
        labels[2:4, 2:4], labels[10:30, 10:30] = 1, 2
    if kind == "in part":
        labels[:, 20:] = -1
    asked = labels.ravel()[drawn_places(labels, rng)]
    inside = Counter(asked.tolist())
    assert len(asked) == POSITIVES + NEGATIVES and -1 not in inside
    assert (asked > 0).sum() == {"none": 0, "all": len(asked)}.get(kind, POSITIVES)
    assert kind not in ("cells", "in part") or abs(inside[1] - inside[2]) < 0.5 * POSITIVES, "each cell as often"


def test_depth_is_one_in_the_middle_and_falls_to_where_another_cell_begins():
    labels = np.zeros((12, 14), np.int32)
    labels[2:7, 1:6], labels[2:7, 6:11], labels[9, 9] = 1, 2, 3
    depth = depths(labels)
    assert (depth[4, 3], depth[4, 8], depth[9, 9]) == (1, 1, 1) and depth[labels == 0].max() == 0
    assert depth[4, 5] == depth[4, 6] == 0 and 0 < depth[3, 3] < 1


def test_a_cell_smaller_than_a_pixel_of_the_square_is_learned_too():
    _, truth = discs((40, 40, 12), (100, 80, 0))
    item = prepare(np.random.default_rng(0).integers(0, 255, (96, 120, 3), np.uint8), truth, "both", 32)
    assert set(np.unique(item.labels)) == {0, 1, 2} and item.planes.shape == (2, 32, 32)
    flipped, labels = turned(item, np.random.default_rng(1))
    assert flipped.shape == (2, 32, 32) and set(np.unique(labels)) <= {0, 1, 2}
    unseen = Item(item.planes, np.full((32, 32), -1, np.int32))
    unseen.labels[0, 0] = 0  # hardly anything annotated: turned out of sight in some steps
    loss_at = CoordinateLoss(built(0, "float32"), [unseen], 2, 0, True)
    assert all(torch.isfinite(loss_at(step)) for step in range(4))


# ---- points and masks ------------------------------------------------------------------------------------------------
def test_cells_that_touch_have_a_peak_each_and_grow_to_their_outlines():
    image, truth = discs(*TOUCHING)
    labels = prepare(image, truth, "nuclei", 96).labels
    inside = np.where(labels > 0, 0.5 + 0.5 * depths(labels), 0).astype(np.float32)
    places, heights = peaks(inside, 0.7, 1.0, 3)
    points = in_image(places, 96, truth.shape)
    assert point_score([truth], [points], [heights]) == 1.0
    for outline in ("nuclei", "both", "probability"):
        found = grow(image, inside, points, 24.0, outline, heights)
        order = np.argsort(centre_points(found)[:, 1])
        shared = [(found.mask(k) & truth.mask(j)).sum() / (found.mask(k) | truth.mask(j)).sum()
                  for j, k in enumerate(order)]  # fmt: skip
        assert len(found) == 3 and min(shared) > (0.7 if outline == "probability" else 0.85), (outline, shared)
        assert not found.overlapping and ((found.scores > 0.5) & (found.scores <= 1)).all()


@given(
    st.integers(0, 99), st.sampled_from([0.0, 0.5, 1.5]), st.sampled_from([1, 3, 8]), st.sampled_from([0.5, 0.7, 0.9])
)
def test_a_higher_threshold_only_leaves_peaks_out(seed, blur_px, distance_px, threshold):
    inside = np.random.default_rng(seed).integers(0, 11, (24, 24)).astype(np.float32) / 10  # with ties
    places, heights = peaks(inside, 0.3, blur_px, distance_px)
    fewer, higher = peaks(inside, threshold, blur_px, distance_px)
    assert np.array_equal(places[heights > threshold], fewer) and np.array_equal(heights[heights > threshold], higher)


def test_two_points_in_a_pixel_are_one_cell_and_no_point_is_none():
    image, truth = discs((36, 40, 12))
    inside = np.zeros((32, 32), np.float32)
    one = grow(image, inside, np.array([[40, 36], [40, 36]]), 24.0, "nuclei", np.array([0.9, 0.4]))
    assert one.scores.tolist() == [0.9] and abs(int(one.areas_px[0]) - int(truth.areas_px[0])) < 60
    assert not len(grow(image, inside, np.zeros((0, 2), int), 24.0, "nuclei"))
    dark = grow(np.zeros_like(image), inside, np.array([[5, 5]]), 24.0, "probability")
    assert dark.areas_px.tolist() == [21], "a small disc around the point is always the cell's"


def test_images_of_any_size(drawn, tmp_path):
    config = config_of("coordinate", steps=1, eval_every=1, peak_threshold=0.0, min_area_px=0)
    checkpoint = coordinate.train(drawn.select("train").subset([0]), drawn.select("val"), config, tmp_path)
    segment, answers = coordinate.load(checkpoint), coordinate.answers_of(checkpoint)
    for shape in [(3, 400), (224, 224), (65, 33), (1, 1)]:
        image = np.random.default_rng(0).integers(0, 255, (*shape, 3), np.uint8)
        (found,) = segment([image])
        assert found.shape == shape and bool(len(found)) == (shape != (1, 1)), "every answer is above 0"
        assert answers(image).shape == (64, 64)
        assert not answers(np.zeros_like(image)).any(), "where nothing is shown no cell is seen"


def test_what_is_searched_is_best_on_these_images_and_what_is_set_stays():
    image, truth = discs(*TOUCHING)
    inside = cv2.GaussianBlur((prepare(image, truth, "nuclei", 96).labels > 0).astype(np.float32), (0, 0), 2)
    seen = [Seen(image, 0.45 * inside, truth)] * 3  # nothing reaches the default of 0.5
    found = search_peaks(seen, DEFAULT)
    assert found["peak_threshold"] in (0.3, 0.4)
    places, heights = peaks(seen[0].inside, *found.values())
    assert point_score([truth], [in_image(places, 96, truth.shape)], [heights]) == 1
    assert search_peaks(seen, {**DEFAULT, "peak_threshold": 0.6, "blur_px": 2.0})["peak_threshold"] == 0.6
    assert search_peaks([], DEFAULT) == {"peak_threshold": 0.5, "blur_px": 1.0, "peak_distance_px": 3}
    assert search_outline([Seen(image, np.zeros((32, 32), np.float32), truth)], 24.0) != "probability"


# ---- training --------------------------------------------------------------------------------------------------------
def test_it_learns_where_nuclei_are(drawn, tmp_path):
    train, val = drawn.select("train"), drawn.select("val")
    settings = {"steps": 120, "eval_every": 60, "batch_size": 3, "crop_px": 64, "learning_rate": 0.005}
    config = coordinate.TrainSettings(**settings, average_steps=20, precision="float32", outline="both")
    checkpoint = coordinate.train(train, val, config, tmp_path)
    found = list(coordinate.load(checkpoint)(val.images()))
    points = [centre_points(cells) for cells in found]
    assert point_score(val.instances, points, [cells.scores for cells in found]) > 0.7
    card = weights.read_card(checkpoint)
    assert card.metrics["convention"].startswith("point") and card.config["square_px"] == 64


def test_depth_teaches_a_middle_that_is_surer_than_the_edge(drawn):
    image, truth = drawn[0]
    item = prepare(image, truth, "both", 64)
    network = built(0, "float32")
    _, _, wanted = CoordinateLoss(network, [item], 1, 0, True)._drawn(item, np.random.default_rng(0))
    _, _, plain = CoordinateLoss(network, [item], 1, 0, False)._drawn(item, np.random.default_rng(0))
    assert set(np.unique(plain)) == {0, 1} and 0.5 <= wanted[plain == 1].min() < 0.6 < wanted.max() <= 1
    assert wanted[plain == 0].max() == 0
