"""Instances that are malformed, very many, or real."""

import csv
import random
import tracemalloc

import numpy as np
import pytest
from instance_cases import ORDERS, decoded, stacked

from cellkit.cells.instances import Instances
from cellkit.errors import UserError

# ---- malformed -----------------------------------------------------------------------------------------------------


def rle_of(counts, size=(3, 4)):
    return {"size": list(size), "counts": counts}


@pytest.mark.parametrize(
    ("rle", "reason"),
    [
        (rle_of([3, 2]), "covers 5 px, its image has 12"),  # pycocotools would show uninitialised memory
        (rle_of("32"), "covers 5 px, its image has 12"),
        (rle_of([3, 2, 8]), "covers 13 px"),
        (rle_of([3, -2, 11]), "counts are >= 0"),
        (rle_of([3, -1, 2, 8]), "counts are >= 0"),
        (rle_of([]), "covers 0 px"),
        (rle_of([2**70]), "its image has 12"),
        (rle_of([2**63, 2**63, 12]), "its image has 12"),
        (rle_of([-(2**70), 2**70, 12]), "its image has 12"),
        (rle_of(""), "no run lengths"),
        (rle_of("32 "), "no run lengths"),
        (rle_of("\x7f27"), "no run lengths"),
        (rle_of("é27"), "no run lengths"),
        (rle_of("\ud80027"), "no run lengths"),
        (rle_of("\u271327"), "no run lengths"),
        (rle_of("32W"), "no run lengths"),  # the last letter announces another
        (rle_of("PPPPPPPPPPP0"), "no run lengths"),
        (rle_of([3.0, 2, 7]), "no run lengths"),
        (rle_of(["3", "2", "7"]), "no run lengths"),
        (rle_of([True, 2, 9]), "no run lengths"),
        (rle_of(None), "no run lengths"),
        (rle_of(12), "no run lengths"),
        (rle_of("327", (4, 3)), r"has size \[4, 3\], its image is \[3, 4\]"),
        (rle_of("327", (3.0, 4)), "has size"),
        (rle_of("327", (3, 4, 1)), "has size"),
        ({"size": None, "counts": "327"}, "has size"),
        ({"counts": "327"}, "lacks 'size' or 'counts'"),
        ({"size": [3, 4]}, "lacks 'size' or 'counts'"),
        ("327", "is no COCO RLE"),
        (None, "is no COCO RLE"),
    ],
)
def test_a_coco_rle_is_checked_before_it_is_decoded(rle, reason):
    good = rle_of("327")
    with pytest.raises(UserError, match=f"RLE 3 .*{reason}" if reason != "counts are >= 0" else reason):
        Instances.from_coco_rle([good, rle_of([3, 2, 7]), rle, good], (3, 4))


def test_coco_counts_of_zero_length_and_longer_texts_than_needed_are_read():
    cells = Instances.from_coco_rle([rle_of([0, 0, 3, 1, 0, 1, 7, 0]), rle_of("S027")], (3, 4))
    assert cells[0] == cells[1] == Instances.from_coco_rle([rle_of("327")], (3, 4))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("2", "has 1 numbers"),
        ("2 1 6", "has 3 numbers"),
        ("0 1", "leaves its image of 12 px"),
        ("2 0", "leaves its image"),
        ("12 2", "leaves its image"),
        ("13 1", "leaves its image"),
        ("1 99999999999", "leaves its image"),
        ("6 1 2 1", "has runs out of order or overlapping"),
        ("2 2 3 1", "has runs out of order or overlapping"),
        ("2 1 2 1", "has runs out of order or overlapping"),
        ("-2 1", "holds '-2'"),
        ("2.0 1", "holds '2.0'"),
        ("a b", "holds 'a'"),
        ("2,1", "holds '2,1'"),
        ("٢ ١", "holds"),
        ("2 1_0", "holds '1_0'"),
        ("1 99999999999999999999", "holds"),
        (float("nan"), "holds 'nan'"),
        (None, "holds 'None'"),
    ],
)
@pytest.mark.parametrize("order", ORDERS)
def test_a_kaggle_text_is_checked_before_it_is_decoded(text, reason, order):
    with pytest.raises(UserError, match=f"RLE 2 {reason}"):
        Instances.from_kaggle_rle(["2 1", text], (3, 4), order)


def test_kaggle_runs_that_touch_are_joined():
    for order in ORDERS:
        assert Instances.from_kaggle_rle(["2 1 3 1 4 2"], (3, 4), order).to_kaggle_rle(order) == ["2 4"]


def mangled(text, rng, letters):
    """Change a text at one to three places."""
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(text) + 1)
        cut = rng.choice([0, 1, 1, rng.randrange(len(text) + 1)])
        text = text[:place] + rng.choice(["", *letters]) + text[place + cut :]
    return text


def test_mangled_coco_texts_are_read_right_or_refused():
    rng, shape, read = random.Random(0), (13, 11), 0
    labels = np.random.default_rng(0).integers(0, 4, shape) * (np.indices(shape).sum(0) % 5 > 0)
    texts = [rle["counts"] for rle in Instances.from_labels(labels).to_coco_rle()] + ["]4", "0]4", "g07T1"]
    for _ in range(2000):
        rle = rle_of(mangled(rng.choice(texts), rng, [chr(48 + k) for k in range(64)] + [" ", "\x00", "~", "ü"]), shape)
        try:
            cells = Instances.from_coco_rle([rle], shape)
        except UserError:
            continue
        read += 1
        np.testing.assert_array_equal(cells.mask(0), decoded(rle))  # its counts sum to H * W: safe upstream
    assert 10 < read < 1000


def test_mangled_coco_counts_are_read_right_or_refused():
    rng, shape, read = random.Random(1), (6, 7), 0
    for _ in range(2000):
        cuts = sorted(rng.sample(range(43), 5))
        counts = [b - a for a, b in zip([0, *cuts], [*cuts, 42], strict=True)]
        place = rng.randrange(6)
        counts[place] = rng.choice([counts[place], counts[place] + 1, -1, 0, 2**62, 2**64, 1.0, None, "1", [1], True])
        try:
            cells = Instances.from_coco_rle([rle_of(counts, shape)], shape)
        except UserError:
            continue
        read += 1
        assert sum(counts) == 42
        wanted = np.repeat(np.arange(6) % 2, counts).reshape(7, 6).T
        np.testing.assert_array_equal(cells.mask(0), wanted)
    assert 100 < read < 1000


@pytest.mark.parametrize("order", ORDERS)
def test_mangled_kaggle_texts_are_read_right_or_refused(order):
    rng, shape, read = random.Random(2), (9, 8), 0
    labels = np.random.default_rng(0).integers(0, 3, shape)
    texts = Instances.from_labels(labels).to_kaggle_rle(order)
    for _ in range(2000):
        text = mangled(rng.choice(texts), rng, [*"0123456789", " ", "  ", "-", ".", "e", "\t", "x", "²", "999999"])
        try:
            cells = Instances.from_kaggle_rle([text], shape, order)
        except UserError:
            continue
        read += 1
        numbers = list(map(int, text.split()))
        wanted = np.zeros(72, int)
        for start, length in zip(numbers[::2], numbers[1::2], strict=True):
            wanted[start - 1 : start - 1 + length] += 1
        wanted = wanted.reshape(shape) if order == "row-major" else wanted.reshape(8, 9).T
        np.testing.assert_array_equal(cells.mask(0), wanted)
    assert 50 < read < 1500


# ---- large ---------------------------------------------------------------------------------------------------------


def peak_bytes(job):
    tracemalloc.start()
    job()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_conversion_grows_with_the_runs_not_with_the_pixels():
    side = 30_000  # 900 million px: a list of them would be 7 GB
    whole = Instances.from_runs((side, side), [0], [side * side], [0, 1])
    rle = rle_of([0, side * side], (side, side))

    def convert():
        assert whole.to_coco_rle(compressed=False) == [rle]
        assert Instances.from_coco_rle([rle], (side, side)) == whole
        assert whole.to_kaggle_rle("column-major") == [f"1 {side * side}"]
        assert Instances.from_kaggle_rle([f"1 {side * side}"], (side, side), "column-major") == whole

    assert peak_bytes(convert) < 20 * 2**20


def test_memory_stays_within_three_label_images():
    labels = np.kron(np.arange(1, 401, dtype=np.int32).reshape(20, 20), np.pad(np.ones((45, 45), np.int32), 3))
    cells, whole = Instances.from_labels(labels), stacked(np.ones((1, *labels.shape), bool))
    jobs = {
        "from_labels": lambda: Instances.from_labels(labels),
        "to_coco_rle": lambda: cells.to_coco_rle(),
        "row-major": lambda: cells.to_kaggle_rle("row-major"),
        "column-major": lambda: cells.to_kaggle_rle("column-major"),
        "paint": lambda: cells.paint(),
        "paint, overlapping": lambda: Instances.concatenate([cells, cells]).paint(),
        "paint, one below all": lambda: Instances.concatenate([cells, whole]).paint(),
    }
    peaks = {name: peak_bytes(job) / labels.nbytes for name, job in jobs.items()}
    assert max(peaks.values()) < 3, peaks


# ---- real ----------------------------------------------------------------------------------------------------------


@pytest.mark.realdata
def test_real_annotations_survive_every_codec(data_folder):
    with open(data_folder / "sartorius" / "train.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    images = {}
    for row in rows:
        shape = int(row["height"]), int(row["width"])
        images.setdefault((row["id"], shape), []).append(row["annotation"])
    for (_, shape), texts in images.items():
        cells = Instances.from_kaggle_rle(texts, shape, "row-major")
        assert cells.to_kaggle_rle("row-major") == [" ".join(text.split()) for text in texts]
        assert Instances.from_coco_rle(cells.to_coco_rle(), shape) == cells
    assert sum(map(len, images.values())) == len(rows) > 7000
