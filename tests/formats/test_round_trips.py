"""Ten thousand round trips through every form that lose nothing."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.formats.coco import write_coco, write_results
from cellkit.formats.coco_reading import read_coco, read_results
from cellkit.formats.competitions import profiles
from cellkit.formats.label_images import read_labels, write_labels
from cellkit.formats.submission import read_submission, write_submission

PROFILES = profiles()

TRIPS, AT_ONCE = (
    10_000,
    10,
)  # scenes; so many in one example of hypothesis, which takes as long to begin one as they all do
ORDERS = ("row-major", "column-major")


# ---- scenes --------------------------------------------------------------------------------------------------------
def draw_cell(shape, kind, y, x, tall, wide):
    """Draw one mask of a kind that some format is known to lose."""
    mask = np.zeros(shape, bool)
    y, x = y % shape[0], x % shape[1]
    tall, wide = 1 + tall % 5, 1 + wide % 5
    if kind == 0:
        mask[y, x] = True  # one pixel
    elif kind == 1:
        mask[y : y + tall, x] = True  # one pixel wide
    elif kind == 2:
        mask[:] = True  # as large as the image
    elif kind in (3, 4):
        mask[y : y + tall, x : x + wide] = True
    elif kind == 5:  # a ring, inside the image where there is room
        y, x = y % max(1, shape[0] - tall - 1), x % max(1, shape[1] - wide - 1)
        mask[y : y + tall + 2, x : x + wide + 2] = True
        mask[y + 1 : y + tall + 1, x + 1 : x + wide + 1] = False
    else:  # in pieces that touch at corners, or not at all
        mask[y::tall, x::wide] = True
    return mask


@st.composite
def scenes(draw):
    """Cells that may overlap, of random classes and scores."""
    shape = draw(st.integers(1, 13)), draw(st.integers(1, 13))
    count = draw(st.sampled_from([0, 1, 2, 2, 3, 3, 4, 5]))
    raw = draw(st.binary(min_size=6 * count, max_size=6 * count))
    rows = [raw[6 * k : 6 * k + 6] for k in range(count)]
    masks = [draw_cell(shape, row[0] % 7, *row[1:5]) for row in rows]
    return Instances.from_masks(masks, shape, [row[5] % 4 for row in rows], [row[5] / 255 for row in rows])


def features(cells):
    """Name what of a scene is known to bite."""
    from scipy.ndimage import binary_fill_holes, label

    masks = [cells.mask(k) for k in range(len(cells))]
    boxes = cells.boxes_xywh
    labels = cells.paint()
    yield from ["no cell"] * (not len(cells)) + ["overlap"] * cells.overlapping
    yield from ["one pixel"] * bool((cells.areas_px == 1).any())
    yield from ["one pixel wide"] * bool(((boxes[:, 2:].min(axis=1) == 1) & (cells.areas_px > 1)).any())
    yield from ["image-sized"] * bool((cells.areas_px == labels.size).any())
    yield from ["hole"] * any((binary_fill_holes(mask) != mask).any() for mask in masks)
    yield from ["in pieces"] * any(label(mask)[1] > 1 for mask in masks)
    yield from ["touching"] * bool(((labels[:, 1:] != labels[:, :-1]) & (labels[:, 1:] * labels[:, :-1] > 0)).any())


def through_all_codecs(cells):
    """Write cells in every form, each from what the one before gave back."""
    about = {"class_ids": cells.class_ids, "scores": cells.scores}
    for compressed in (True, False):
        cells = Instances.from_coco_rle(cells.to_coco_rle(compressed), cells.shape, **about)
    for order in ORDERS:
        cells = Instances.from_kaggle_rle(cells.to_kaggle_rle(order), cells.shape, order, **about)
    return cells


def disjoint(cells):
    """Return what a label image keeps of cells: those that own a pixel."""
    labels = cells.paint()
    kept = np.unique(labels[labels > 0]) - 1
    return labels, Instances.from_labels(labels, cells.class_ids[kept], cells.scores[kept])


@pytest.fixture(scope="module")
def travelled():
    """Every scene, after it went through every form in memory; and how often each feature occurred."""
    seen, counts = [], Counter()

    @settings(max_examples=TRIPS // AT_ONCE, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.tuples(*[scenes()] * AT_ONCE))
    def some_trips(some):
        for cells in some:
            assert through_all_codecs(cells) == cells  # overlapping truth too
            labels, apart = disjoint(cells)
            assert cells.overlapping or apart == cells
            assert np.array_equal(apart.paint(np.unique(labels[labels > 0])), labels)
            seen.append(cells)
            counts.update(features(cells) if len(seen) % 10 == 0 else ())

    some_trips()
    labels = np.zeros((270, 260), np.uint32)
    labels.ravel()[:70_000] = np.random.default_rng(0).permutation(70_000) + 1
    seen.append(Instances.from_labels(labels, scores=np.full(70_000, 0.5)))
    return seen, counts


def test_ten_thousand_scenes_survive_every_form_in_memory(travelled):
    seen, counts = travelled
    assert len(seen) > TRIPS
    assert through_all_codecs(seen[-1]) == seen[-1]
    bites = ("no cell", "overlap", "one pixel", "one pixel wide", "image-sized", "hole", "in pieces", "touching")
    assert min(counts[name] for name in bites) >= 10, counts  # of every tenth scene


def test_ten_thousand_scenes_survive_coco_files(travelled, tmp_path):
    seen = [cells.with_scores(cells.scores.round(6)) for cells in travelled[0]]
    records = [ImageRecord(str(k), f"{k}.png", *cells.shape) for k, cells in enumerate(seen)]
    coco = read_coco(write_coco(tmp_path / "truth.json", records, seen, ["a", "b", "c"], with_scores=True))
    assert coco.records == records
    assert coco.instances == seen
    assert read_results(write_results(tmp_path / "results.json", coco.ids, seen), coco) == seen


@pytest.mark.parametrize("profile", PROFILES)
def test_ten_thousand_scenes_survive_submissions(travelled, tmp_path, profile):
    seen = travelled[0][list(PROFILES).index(profile) :: len(PROFILES)]
    apart = [disjoint(cells)[1].with_classes(0).with_scores(1) for cells in seen]
    names, shapes = [f"i{k}" for k in range(len(apart))], [cells.shape for cells in apart]
    path = write_submission(tmp_path / "s.csv", names, apart, profile)
    back = read_submission(path, profile, dict(zip(names, shapes, strict=True)))
    assert list(back.values()) == apart
    assert sum(map(len, apart)) > TRIPS / 2


@pytest.mark.parametrize("profile", PROFILES)
def test_overlapping_truth_survives_a_csv(travelled, tmp_path, profile):
    seen = travelled[0][list(PROFILES).index(profile) : TRIPS : len(PROFILES)]
    truth = [cells.with_classes(0).with_scores(1) for cells in seen]
    rows = [",".join(PROFILES[profile].columns)]
    for k, cells in enumerate(truth):
        rows += [f"i{k},{text}" for text in cells.to_kaggle_rle(PROFILES[profile].order) or [""]]
    (tmp_path / "train.csv").write_text("\n".join(rows) + "\n")
    shapes = {f"i{k}": cells.shape for k, cells in enumerate(truth)}
    assert list(read_submission(tmp_path / "train.csv", profile, shapes, allow_overlaps=True).values()) == truth


def test_label_files_hold_more_cells_than_16_bits(travelled, tmp_path):
    cells = travelled[0][-1]
    write_labels(tmp_path / "a.tif", cells.paint())
    assert Instances.from_labels(read_labels(tmp_path / "a.tif"), scores=cells.scores) == cells
