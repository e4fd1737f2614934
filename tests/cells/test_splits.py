"""Splits, groups and folds: shares are kept, no group is torn apart."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from record_cases import image

from cellkit.cells.records import SPLITS
from cellkit.cells.splits import check_groups, hold_out, k_folds, name_groups, place_of, split_records
from cellkit.errors import UserError
from cellkit.files import write_frame

THIRDS = {"train": 0.6, "val": 0.2, "test": 0.2}


# ---- splits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [10, 25, 60])
def test_numbered_images_are_split_as_asked(count, seed):
    done = split_records([image(f"field_{k:02d}") for k in range(count)], THIRDS, seed=seed)
    counts = Counter(record.split for record in done)
    assert all(abs(counts[name] - share * count) <= 2 for name, share in THIRDS.items()), counts


@pytest.mark.parametrize("count", [20, 40])
@pytest.mark.parametrize("name", ["A_{:02d}", "day {0} well {0} field {0}", "{}"])
def test_an_image_more_moves_no_other(name, count):
    before = [image(name.format(k)) for k in range(count)]
    split = lambda records: {r.image_id: r.split for r in split_records(records, THIRDS, seed=0)}  # noqa: E731
    for more in ("A_00a", "zz", "aa", name.format(count), name.format(999)):
        after = split([image(more), *before])
        assert all(after[r.image_id] == place for r, place in zip(before, split(before).values(), strict=True))
        fewer = split(before[1:])
        assert all(fewer[r.image_id] == after[r.image_id] for r in before[1:])


@pytest.mark.parametrize("step", [21, 55, 89, 144, 233, 610, 987, 1597])
def test_numbers_far_apart_are_split_about_as_asked(step):
    shares = []
    for seed in range(6):
        done = split_records([image(f"frame_{step * k}") for k in range(40)], THIRDS, seed=seed)
        shares.append(sum(r.split == "train" for r in done) / 40)
    assert 0.4 < np.mean(shares) < 0.8 and max(shares) <= 0.9, shares


def test_a_name_decides_however_it_is_encoded():
    composed, decomposed = "M\u00fcller_3", "Mu\u0308ller_3"
    assert place_of(composed) == place_of(decomposed) and place_of(composed) != place_of(composed, seed=1)


def test_each_cell_type_reaches_each_split():
    records = [image(k, cell_type="A" if k < 20 else "B") for k in range(25)]
    for seed in range(20):
        counts = Counter((record.cell_type, record.split) for record in split_records(records, THIRDS, seed=seed))
        assert len(counts) == 6, (seed, counts)
        assert counts["B", "train"] >= 1


def test_few_images_train_first():
    for seed in range(10):
        assert [r.split for r in split_records([image(7)], THIRDS, seed)] == ["train"]
        assert sorted(r.split for r in split_records([image(7), image(9)], THIRDS, seed)) == ["train", "val"]


def test_another_seed_is_another_split():
    records = [image(k) for k in range(30)]
    splits = {tuple(r.split for r in split_records(records, THIRDS, seed)) for seed in range(5)}
    assert len(splits) == 5


FRACTIONS = st.dictionaries(st.sampled_from(SPLITS), st.integers(0, 10), min_size=1).filter(lambda d: sum(d.values()))

SETS = st.lists(st.tuples(st.sampled_from(["A", "B", ""]), st.sampled_from(["", "g1", "g2", "g3", "g4"])), max_size=30)


@settings(max_examples=200, deadline=None)
@given(SETS, FRACTIONS, st.integers(0, 9), st.sampled_from(["image", "group"]), st.booleans(), st.randoms())
def test_splits_keep_their_promises(about, weights, seed, by, stratify, random):
    fractions = {name: weight / sum(weights.values()) for name, weight in weights.items()}
    records = [image(k, cell_type=kind, group=group) for k, (kind, group) in enumerate(about)]
    done = split_records(records, fractions, seed, by, stratify)
    assert [replace(record, split="") for record in done] == records, "nothing else changes, nor the order"
    wanted = {name for name, weight in weights.items() if weight}
    assert {record.split for record in done} <= wanted
    shuffled = random.sample(records, len(records))
    again = {record.image_id: record.split for record in split_records(shuffled, fractions, seed, by, stratify)}
    assert again == {record.image_id: record.split for record in done}, "the order given does not matter"
    if by == "group":
        named = {name: share for name, share in fractions.items() if name}
        check_groups(done if named == fractions else [r for r in done if r.split])
        for group in {record.group for record in records} - {""}:
            assert len({record.split for record in done if record.group == group}) == 1
    if by == "group" and stratify:
        if len({r.group or r.image_id for r in records}) >= len(wanted):
            assert {r.split for r in done} == wanted, "every wanted split gets one while there are enough"
        return
    strata = {r.cell_type for r in records} if stratify and by == "image" else {None}
    for stratum in strata:
        part = [r for r in done if stratum in (None, r.cell_type)]
        units = {(r.group or r.image_id) if by == "group" else r.image_id: r.split for r in part}
        counts = Counter(units.values())
        if len(units) >= len(wanted):
            assert set(counts) == wanted, "every wanted split gets one while there are enough"


@pytest.mark.parametrize(
    "fractions",
    [
        {},
        {"train": 0.5},
        {"train": 0.7, "val": 0.7},
        {"train": 1.5, "val": -0.5},
        {"train": math.nan, "val": 0.5},
        {"train": 0.5, "validation": 0.5},
    ],
)
def test_fractions_that_are_none_are_refused(fractions):
    with pytest.raises(UserError, match="split fractions are .*\ngive train, val and test, summing to 1"):
        split_records([image(k) for k in range(4)], fractions, seed=0)


def test_splitting_by_something_else_is_refused():
    with pytest.raises(UserError, match="split_by is 'plate'\nsplit by 'image' or by 'group'"):
        split_records([image(0)], THIRDS, seed=0, by="plate")


def test_a_group_on_both_sides_is_refused():
    records = [
        image(0, group="A1", split="train"),
        image(1, group="A1", split="test"),
        image(2, group="B2", split="val"),
    ]
    with pytest.raises(UserError, match="group A1 is in more than one split\nset convert.split_by: group"):
        check_groups(records)
    check_groups(records[1:])
    check_groups([records[0], replace(records[1], split="")])  # set aside
    check_groups([image(0, split="train"), image(1, split="test")])  # no group known


# ---- groups and folds ----------------------------------------------------------------------------------------------


def wells(plan):
    """Make images of wells: {well: {cell type: images}}."""
    return [
        image(f"{well}_{kind}_{n}", group=well, cell_type=kind, source=f"plate 1/{well}_{kind}_{n}.tif")
        for well, kinds in plan.items()
        for kind, count in kinds.items()
        for n in range(count)
    ]


PLATE = wells({f"{row}{n:02d}": {"AB"[row > "D"]: 4 + n % 3} for row in "ABCDEFGH" for n in (1, 2, 3)})


def test_whole_groups_are_split_with_even_shares_of_the_cell_types():
    for seed in range(4):
        done = split_records(PLATE, THIRDS, seed, by="group")
        check_groups(done)
        for kind in "AB":
            counts = Counter(r.split for r in done if r.cell_type == kind)
            total = sum(counts.values())
            assert all(abs(counts[name] / total - share) < 0.3 for name, share in THIRDS.items()), (seed, kind, counts)
    assert len({tuple(r.split for r in split_records(PLATE, THIRDS, seed, by="group")) for seed in range(4)}) == 4


def test_a_rare_type_in_few_groups_reaches_every_split():
    records = wells({f"A{n:02d}": {"common": 10} for n in range(12)} | {f"B{n:02d}": {"rare": 2} for n in range(3)})
    for seed in range(5):
        done = split_records(records, {"train": 0.34, "val": 0.33, "test": 0.33}, seed, by="group")
        assert {r.split for r in done if r.cell_type == "rare"} == {"train", "val", "test"}


@pytest.mark.parametrize("by", ["image", "group"])
@pytest.mark.parametrize("k", [2, 3, 5])
def test_folds_hold_every_image_once_and_even_shares(by, k):
    folds = k_folds(PLATE, k, seed=1, by=by)
    assert sorted(r.image_id for fold in folds for r in fold) == sorted(r.image_id for r in PLATE)
    if by == "group":
        where = {(r.group, number) for number, fold in enumerate(folds) for r in fold}
        assert len(where) == 24, "no group is in two folds"
    share = sum(r.cell_type == "A" for r in PLATE) / len(PLATE)
    for fold in folds:
        assert abs(sum(r.cell_type == "A" for r in fold) / len(fold) - share) < (0.1 if by == "group" else 0.05)
        assert abs(len(fold) - len(PLATE) / k) <= (6 if by == "group" else 1)


FOLD_SETS = st.lists(
    st.tuples(st.sampled_from("ABC"), st.sampled_from(["", "g1", "g2", "g3"])), min_size=2, max_size=30
)


@settings(max_examples=150, deadline=None)
@given(FOLD_SETS, st.integers(2, 6), st.integers(0, 9), st.sampled_from(["image", "group"]), st.randoms())
def test_folds_keep_their_promises(about, k, seed, by, random):
    records = [image(n, cell_type=kind, group=group) for n, (kind, group) in enumerate(about)]
    units = {(r.group or r.image_id) if by == "group" else r.image_id for r in records}
    if k > len(units):
        with pytest.raises(UserError, match=rf"{k} folds of {len(units)} {by}"):
            k_folds(records, k, seed, by)
        return
    folds = k_folds(records, k, seed, by)
    assert len(folds) == k and all(folds), "no fold is empty"
    assert Counter(r.image_id for fold in folds for r in fold) == Counter(r.image_id for r in records)
    again = k_folds(random.sample(records, len(records)), k, seed, by)
    assert [{r.image_id for r in fold} for fold in again] == [{r.image_id for r in fold} for fold in folds]
    if by == "group":
        for group in {r.group for r in records} - {""}:
            assert sum(any(r.group == group for r in fold) for fold in folds) == 1
    held = hold_out(folds, 0)
    assert {r.image_id for r in held if r.split == "val"} == {r.image_id for r in folds[0]}
    assert {r.split for r in held} == {"train", "val"}
    if by == "group":
        check_groups(held)


def test_folds_that_cannot_be_are_refused():
    for k in (-1, 0, 1, 25):
        with pytest.raises(UserError, match=rf"{k} folds of 24 groups\nask for 2 folds or more"):
            k_folds(PLATE, k, 0, by="group")
    with pytest.raises(UserError, match="folds by 'well'"):
        k_folds(PLATE, 2, 0, by="well")
    with pytest.raises(UserError, match="stratified by 'kind'\nname a column"):
        k_folds(PLATE, 2, 0, stratify="kind")
    with pytest.raises(UserError, match="fold 2 of 2\nfolds are 0 to 1"):
        hold_out(k_folds(PLATE, 2, 0), 2)
    assert len(k_folds(PLATE, 3, 0, stratify=None)) == 3


def test_groups_are_found_in_names():
    bare = [replace(record, group="") for record in PLATE]
    named = name_groups(bare, r"(?P<group>[A-H]\d\d)_")
    assert named == PLATE
    assert name_groups(PLATE, None) == PLATE
    by_id = name_groups([image("donor7-field3")], r"donor(?P<group>\d+)")
    assert by_id[0].group == "7", "where there is no source, the id"


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        (
            r"(?P<group>[A-B]\d\d)",
            "fits 30 of 120 images, not e.g. 'plate 1/C01_A_0.tif' or 'C01_A_0'\nwrite an expression",
        ),
        (r"(?P<group>x?)plate", "fits 0 of 120 images"),
        (r"([A-H]\d\d)", "names no group\nmark the part"),
        (r"(?P<group>[A-H", "unterminated character set"),
    ],
)
def test_a_rule_that_leaves_images_without_a_group_is_refused(pattern, reason):
    with pytest.raises(UserError) as error:
        name_groups(PLATE, pattern)
    assert reason in str(error.value) and "convert.group_from" in str(error.value)


def test_a_written_frame_is_safe_to_open_and_reads_back(tmp_path):
    import pandas as pd

    frame = pd.DataFrame({"group": ["=1+1", "plate", None], "score": [0.1 + 0.2, 1.0, float("nan")], "n": [1, 2, 3]})
    path = write_frame(tmp_path / "t.csv", frame)
    assert path.read_text().splitlines() == ["group,score,n", "'=1+1,0.30000000000000004,1", "plate,1.0,2", ",,3"]
    assert write_frame(tmp_path / "e.csv", frame.head(0)).read_text() == "group,score,n\n"
