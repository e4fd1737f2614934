"""Parity: our numbers are those of the real packages on random images; where they differ, a tripwire pins why.

A tripwire fails when an upstream release changes what the metric definitions and the list of faults say of it: then the
document and this file are to be looked at again, not our numbers.
"""

import contextlib
import json
import math
import subprocess
import sys
import textwrap
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from peers import (
    COCO_PACKAGES,
    cellpose_counts,
    coco_curves,
    coco_data,
    draw,
    has_stardist,
    kernel_iou,
    kernel_score,
    mean_defined,
    sequential,
    stardist_matching,
)
from score_cases import label_pairs, one, overlapping_pairs, spans, strip
from test_matching import TABLE
from test_scores import NOTHING

from cellkit.cells.instances import Instances
from cellkit.errors import UserError
from cellkit.files import write_json
from cellkit.formats.coco_reading import read_coco, read_results
from cellkit.scores.aji_cellpose import aji_cellpose
from cellkit.scores.cellpose import cellpose
from cellkit.scores.coco import coco
from cellkit.scores.iou import overlap_images, overlaps, overlaps_of_labels
from cellkit.scores.kaggle import kaggle
from cellkit.scores.matching import THRESHOLDS, as_fractions, count, heaviest_matching
from cellkit.scores.stardist import stardist
from cellkit.scores.voc import voc

quick = settings(max_examples=150, deadline=None)
TEN = [float(t) for t in THRESHOLDS]
LOW = [0.1, 0.25, 0.4]  # below 0.5 objects compete for each other, and an assignment is needed
needs_stardist = pytest.mark.skipif(not has_stardist(), reason="stardist is not installed (pip install -e '.[test]')")


@pytest.fixture(scope="module")
def livecell_like():
    """Truth and prediction of 320 cells in 520 x 704 px."""
    return draw((520, 704), 320, 0)


def counted(pairs, thresholds):
    return [part.tolist() for part in count(pairs, as_fractions(thresholds), strict=False)]


# ---- cellpose ------------------------------------------------------------------------------------------------------
@quick
@given(label_pairs())
def test_cellpose_average_precision(sides):
    truth, found = (sequential(side) for side in sides)
    assume((truth == 0).any() and (found == 0).any())  # see vector 7
    ap, tp, fp, fn = cellpose_counts(truth, found, TEN + LOW)
    pairs = overlaps_of_labels(truth, found)
    assert counted(pairs, TEN + LOW) == [part.tolist() for part in (tp, fp, fn)]
    ours = cellpose([pairs], as_fractions(TEN))["by_threshold"].values()
    assert [math.nan if value is None else value for value in ours] == pytest.approx(ap[:10].tolist(), nan_ok=True)


def test_cellpose_on_many_cells(livecell_like):
    _, tp, fp, fn = cellpose_counts(*livecell_like, TEN)
    assert counted(overlaps_of_labels(*livecell_like), TEN) == [part.tolist() for part in (tp, fp, fn)]
    assert tp[0] > tp[7] > 0


@quick
@given(label_pairs())
def test_cellpose_aggregated_jaccard_index(sides):
    from cellpose.metrics import mask_ious

    truth, found = (sequential(side) for side in sides)
    assume((truth == 0).any() and (found == 0).any() and truth.any() and found.any())
    image = overlaps_of_labels(truth, found)
    smaller = min(image.n_truth, image.n_found)
    best = mask_ious(truth, found)[0]
    weight = (2 * image.shared_px >= image.union_px) + image.iou / (2 * smaller)
    chosen = heaviest_matching(image.truth, image.found, weight)
    # equal optima may be broken differently, so the optimum itself is compared
    assert weight[chosen].sum() == pytest.approx((best >= 0.5).sum() + best.sum() / (2 * smaller))


def test_cellpose_aggregated_jaccard_index_on_many_cells(livecell_like):
    from cellpose.metrics import aggregated_jaccard_index

    truth, found = livecell_like
    ours = aji_cellpose([overlaps_of_labels(truth, found)])["score"]
    assert ours == pytest.approx(aggregated_jaccard_index([truth], [found])[0], abs=1e-12)


# ---- stardist ------------------------------------------------------------------------------------------------------
def assert_as_stardist(ours, theirs):
    """Compare a result of ours at one threshold with a (Dataset)Matching; stardist keeps IoU in float32."""
    for mine, other in (("f1", "f1"), ("accuracy", "accuracy"), ("precision", "precision"), ("recall", "recall")):
        assert ours[mine] == pytest.approx(float(getattr(theirs, other)), abs=1e-12)
    if theirs.thresh >= 0.5:  # below, stardist breaks ties by pairs that are no hits
        assert ours["pq"] == pytest.approx(float(theirs.panoptic_quality), abs=1e-6)


@needs_stardist
@quick
@given(label_pairs(high=40))
def test_stardist_matching(sides):
    pairs = overlaps_of_labels(*sides)  # ids with gaps, with and without background
    theirs = stardist_matching(*sides, TEN + LOW)
    assert counted(pairs, TEN + LOW) == [[int(getattr(m, name)) for m in theirs] for name in ("tp", "fp", "fn")]
    for threshold, matching in zip(TEN + LOW, theirs, strict=True):
        assert_as_stardist(stardist([pairs], as_fractions([threshold])), matching)


@needs_stardist
@settings(max_examples=60, deadline=None)
@given(images=st.lists(label_pairs(), min_size=1, max_size=4))
def test_stardist_matching_dataset(images):
    theirs = stardist_matching(*zip(*images, strict=True), [0.5, 0.75, 0.3], by_image=False)
    pairs = [overlaps_of_labels(*sides) for sides in images]
    for threshold, matching in zip([0.5, 0.75, 0.3], theirs, strict=True):
        assert_as_stardist(stardist(pairs, as_fractions([threshold])), matching)


@needs_stardist
def test_stardist_on_many_cells(livecell_like):
    pairs = overlaps_of_labels(*livecell_like)
    theirs = stardist_matching(*livecell_like, TEN)
    assert counted(pairs, TEN) == [[int(getattr(m, name)) for m in theirs] for name in ("tp", "fp", "fn")]
    assert_as_stardist(stardist([pairs]), theirs[0])


@needs_stardist
@pytest.mark.parametrize("k", TABLE)
def test_stardist_in_the_table_of_twentieths(k):
    truth, found = np.repeat([[1, 0]], 20, axis=1), (np.arange(40) < k).astype(int)[None]
    assert np.mean([m.accuracy for m in stardist_matching(truth, found, TEN)]) == pytest.approx(TABLE[k][5])


@needs_stardist
def test_stardist_in_the_test_vectors():
    one_of_two = stardist_matching(strip(1, 1), strip(1, 0), [0.5])[0]
    assert (one_of_two.tp, one_of_two.fp, one_of_two.fn) == (1, 0, 0)
    two_halves = stardist_matching(strip(1, 1, 0), strip(1, 2, 0), [0.5])[0]
    assert (two_halves.tp, two_halves.fp, two_halves.fn, two_halves.accuracy) == (1, 1, 0, 0.5)
    nothing = stardist_matching(NOTHING, NOTHING, [0.5])[0]
    assert (nothing.accuracy, nothing.f1, nothing.panoptic_quality) == (0, 0, 0)  # here 1 in kaggle, stated
    truth = [strip(1), strip(1, 2, 3, 4, 5, 6, 7, 8)]
    found = [strip(1), strip(1, 0, 0, 0, 0, 0, 0, 0)]
    assert stardist_matching(truth, found, [0.5], by_image=True)[0].accuracy == pytest.approx(0.5625)
    assert stardist_matching(truth, found, [0.5], by_image=False)[0].accuracy == pytest.approx(2 / 9)


@needs_stardist
def test_tripwire_stardist_rounds_iou_to_single_precision():
    from stardist.matching import intersection_over_union

    union = 2 * 10**7  # a cell of 20 million px, all but one of nine tenths of them found
    table = np.array([[0, 0], [union // 10 + 1, 9 * union // 10 - 1]], np.uint64)
    assert (intersection_over_union(table)[1, 1] >= np.float32(0.9)).item() is True
    assert not 10 * int(table[1, 1]) >= 9 * union


@needs_stardist
def test_stardist_brings_no_deep_learning_stack():
    code = "import sys, stardist.matching; print(sorted({'tensorflow', 'keras', 'torch'} & set(sys.modules)))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert told.stdout.strip() == "[]"


# ---- COCO ----------------------------------------------------------------------------------------------------------
@settings(max_examples=150, deadline=None)
@given(st.lists(overlapping_pairs(classes=3), min_size=1, max_size=3), st.data())
def test_pycocotools(images, data):
    truths, founds = map(list, zip(*images, strict=True))
    assume(sum(map(len, founds)))
    crowd = [np.array(data.draw(st.lists(st.booleans(), min_size=len(t), max_size=len(t))), bool) for t in truths]
    if data.draw(st.booleans()):
        crowd = [c & False for c in crowd]
    per_class, most = data.draw(st.booleans()), data.draw(st.sampled_from([3, 100]))
    if not per_class:
        truths, founds = ([side.with_classes(1) for side in sides] for sides in (truths, founds))
    ours = coco(overlap_images(truths, founds), per_class, crowd, most)
    precision, recall = coco_curves("pycocotools", *coco_data(truths, founds, crowd), most)
    theirs = [precision[..., 0], precision[0, ..., 0], precision[5, ..., 0], recall[..., 0]]
    mine = [ours["score"], ours["ap50"], ours["ap75"], ours["recall"]]
    assert mine == [pytest.approx(mean_defined(values), abs=1e-9) for values in theirs]


@settings(max_examples=100, deadline=None)
@given(st.lists(overlapping_pairs(classes=2), min_size=1, max_size=3))
def test_faster_coco_eval(images):
    truths, founds = map(list, zip(*images, strict=True))
    assume(sum(map(len, founds)) and sum(map(len, truths)))
    ours = coco(overlap_images(truths, founds), per_class=True, max_detections=500)
    theirs = coco_curves("faster_coco_eval", *coco_data(truths, founds), 500)[0]
    assert ours["score"] == pytest.approx(mean_defined(theirs), abs=1e-9)


def test_coco_from_files_with_many_cells(tmp_path, livecell_like):
    rng, sides = np.random.default_rng(0), [Instances.from_labels(side).with_classes(1) for side in livecell_like]
    truth, found = sides[0], sides[1].with_scores(rng.random(len(sides[1])).round(2))  # many scores tie
    data, results = coco_data([truth], [found])
    paths = write_json(tmp_path / "truth.json", data), write_json(tmp_path / "results.json", results)
    known = read_coco(paths[0])
    ours = coco(overlap_images(known.instances, read_results(paths[1], known)))["score"]
    for package in COCO_PACKAGES:
        assert mean_defined(coco_curves(package, *paths, most=500)[0]) == pytest.approx(ours, abs=1e-9)
    assert 0.3 < ours < 0.9


# ---- tripwires: thresholds and kernels -----------------------------------------------------------------------------
def test_tripwire_numpy_thresholds_are_not_the_fractions_meant():
    arange, linspace = np.arange(0.5, 1, 0.05), np.linspace(0.5, 0.95, 10)
    assert (arange[2], arange[9], linspace[8]) == (0.6000000000000001, 0.9500000000000004, 0.8999999999999999)
    assert tuple(map(as_fractions, ([arange[2]], [linspace[8]]))) == ((Fraction(3, 5),), (Fraction(9, 10),))


@pytest.mark.parametrize(("copies", "rows", "columns", "true"), [(2, 1.0, 0.0, 0.5), (5, 1.0, 0.0, 0.2)])
def test_tripwire_the_evaluators_most_kernels_copy(copies, rows, columns, true):
    iou = np.ones((copies, 1))  # perfect predictions x truth
    assert (kernel_score(iou, 0.5), kernel_score(iou.T, 0.5)) == (rows, columns)
    assert kaggle([overlaps(spans(4, (1, 3)), spans(4, *[(1, 3)] * copies))])["score"] == pytest.approx(true)


def test_tripwire_a_histogram_with_as_many_bins_as_ids():
    cells = strip(0, 1, 1, 0, 2, 2, 0, 40, 40)
    assert np.diag(kernel_iou(cells, cells, bins=(4, 4))).tolist() == [0, 0, 1]
    assert np.diag(kernel_iou(cells, cells))[[0, 1, 39]].tolist() == [1, 1, 1]
    assert kaggle(one(cells, cells))["score"] == 1


# ---- tripwires: faults that the COCO evaluators swallow ------------------------------------------------------------
FIVE = Instances.from_labels(np.kron(np.eye(5, dtype=int) * np.arange(1, 6), np.ones((6, 6), int))).with_classes(1)
FOUR_HUNDRED = Instances.from_labels(np.arange(1, 401).reshape(20, 20)).with_classes(1)


def changed(change, cells=FIVE):
    """Truth and perfect results of one image, changed."""
    data, results = coco_data([cells], [cells])
    change(data["annotations"], results)
    return data, results


def _each(key, value):
    def change(truth, found):
        for number, row in enumerate(truth if key != "score" else found):
            row[key] = value(number)

    return change


def _orphans(truth, found):
    for row in truth[:2]:
        row["image_id"] = 99


def _unknown_image(truth, found):
    found[0]["image_id"] = 99


def _without(key):
    return lambda truth, found: truth[0].pop(key)


SWALLOWED = {  # fault: change, what pycocotools makes of it, what faster-coco-eval, our refusal
    "ids from 0": (_each("id", lambda k: k), 0.6416, 0.6416, None),
    "one id for all": (_each("id", lambda k: 1), 0.0416, 0.0416, "annotation id 1 is there twice"),
    "truth of unknown images": (_orphans, 0.6, 0.6, r"2 annotations of images that are not there"),
    "result on an unknown image": (_unknown_image, AssertionError, AssertionError, r"1 annotation of images that"),
    "no area": (_without("area"), KeyError, 1.0, None),
    "no iscrowd": (_without("iscrowd"), KeyError, 1.0, None),
    "image ids as text": (_each("image_id", lambda k: "1"), None, 1.0, None),
    "no result": (lambda truth, found: found.clear(), IndexError, 0.0, None),
    "score nan": (_each("score", lambda k: math.nan), 1.0, ValueError, "score is nan"),
}


@pytest.mark.parametrize("fault", SWALLOWED)
@pytest.mark.parametrize("package", COCO_PACKAGES)
def test_tripwire_what_upstream_makes_of_a_fault(package, fault):
    change, *expected = SWALLOWED[fault]
    expected = expected[COCO_PACKAGES.index(package)]
    warned = (package, fault) == ("faster_coco_eval", "ids from 0")
    told = pytest.warns(UserWarning, match="Found annotation id 0") if warned else contextlib.nullcontext()
    if isinstance(expected, type):
        with pytest.raises(expected):
            coco_curves(package, *changed(change))
    else:
        with told:
            value = mean_defined(coco_curves(package, *changed(change))[0])
        assert value == (None if expected is None else pytest.approx(expected, abs=1e-4))


@pytest.mark.parametrize("fault", SWALLOWED)
def test_what_we_make_of_a_fault(tmp_path, fault):
    change, _, _, refusal = SWALLOWED[fault]
    data, results = changed(change)
    paths = []
    for name, value in (("truth", data), ("found", results)):
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(json.dumps(value))
    if refusal:
        with pytest.raises(UserError, match=refusal):
            read_results(paths[1], read_coco(paths[0]))
        return
    known = read_coco(paths[0])
    score = coco(overlap_images(known.instances, read_results(paths[1], known)))["score"]
    assert score == (0 if fault == "no result" else 1)


@pytest.mark.parametrize("package", COCO_PACKAGES)
def test_tripwire_only_the_best_hundred_count_unless_told(package):  # fault 35
    data = coco_data([FOUR_HUNDRED], [FOUR_HUNDRED])
    assert mean_defined(coco_curves(package, *data)[0]) == pytest.approx(0.2574, abs=5e-5)
    assert mean_defined(coco_curves(package, *data, most=2000)[0]) == pytest.approx(1)


def test_a_score_that_is_no_number_is_refused():  # fault 34
    for convention in (coco, voc):
        with pytest.raises(UserError, match="found object 1 of an image has the score nan"):
            convention([overlaps(FIVE, FIVE.with_scores(np.nan))])


# ---- tripwires: masks that pycocotools cannot take, each in a process of its own -----------------------------------
def in_pycocotools(code, timeout_s=20):
    """Run code after the import of pycocotools.mask; return (exit code, what it printed), or (None, "") if it hung.

    It gets 4 GiB: a wild polygon asks for more.
    """
    bound = "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))\n"
    code = f"import warnings; warnings.simplefilter('ignore')\nfrom pycocotools import mask\n{bound}{textwrap.dedent(code)}"
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return None, ""
    return done.returncode, done.stdout.strip() or done.stderr.strip().rsplit("\n", 1)[-1]


def test_tripwire_a_short_rle_shows_uninitialised_memory():  # fault 27
    code = """
        import numpy as np
        values = set()
        for _ in range(20):
            dirt = np.full((64, 64), 255, np.uint8)
            del dirt
            values |= set(np.unique(mask.decode({"size": [64, 64], "counts": b"32"})).tolist())
        print(sorted(values - {0, 1}) != [])
    """
    assert in_pycocotools(code) == (0, "True")
    with pytest.raises(UserError, match="covers 5 px, its image has 4096"):
        Instances.from_coco_rle([{"size": [64, 64], "counts": "32"}], (64, 64))


@pytest.mark.parametrize(
    ("counts", "told"),
    [("[4, -2, 14]", "OverflowError: Python integer -2"), ("[0, 4000]", "ValueError: Invalid RLE mask")],
)
def test_tripwire_counts_that_do_not_fit(counts, told):  # fault 26
    code, text = in_pycocotools(f"mask.decode(mask.frPyObjects({{'size': [4, 4], 'counts': {counts}}}, 4, 4))")
    assert code == 1
    assert text.startswith(told)


@pytest.mark.parametrize("far", ["float('nan')", "float('inf')", "1e9"])
def test_tripwire_a_wild_polygon_hangs_or_crashes(tmp_path, far):  # fault 28
    code, _ = in_pycocotools(f"mask.frPyObjects([[{far}, 0, 5, 0, 5, 5]], 10, 10)", timeout_s=3)
    assert code is None or code < 0, "pycocotools takes it now: fault 28 can be written anew"


def test_tripwire_a_polygon_of_two_points():  # fault 28
    code, text = in_pycocotools("mask.frPyObjects([[0, 0, 5, 0]], 10, 10)")
    assert code == 1
    assert text.startswith("TypeError")
