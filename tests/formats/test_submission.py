"""Submissions: what is written is valid, what is mangled is refused by line and reason, what is read was written."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cellkit.cells.disjoint import Change, resolve_overlaps
from cellkit.cells.instances import Instances
from cellkit.errors import UserError
from cellkit.formats.competitions import get_profile, profiles
from cellkit.formats.samples import sample_ids
from cellkit.formats.submission import is_truth_table, read_submission, read_truth_table, write_submission
from cellkit.formats.submission_check import Problem, check_submission

PROFILES = profiles()

DATA = Path(os.environ.get("CELLKIT_DATA", Path(__file__).parents[3] / "shared" / "data"))
SHAPE = (3, 4)
SHAPES = {"a": SHAPE, "b": SHAPE}
HEADER = "id,predicted\n"


def saved(tmp_path, text):
    path = tmp_path / "submission.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def problems_of(tmp_path, text, shapes=SHAPES, profile="sartorius"):
    return [(p.line, p.reason) for p in check_submission(saved(tmp_path, text), profile, shapes)]


# ---- write and read ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("profile", "text"),
    [("sartorius", "id,predicted\na,2 1 6 1\nb,\n"), ("dsb2018", "ImageId,EncodedPixels\na,4 2\nb,\n")],
)
def test_the_worked_mask_in_both_profiles(tmp_path, profile, text):
    mask = np.zeros(SHAPE, int)
    mask[:2, 1] = 1
    path = write_submission(
        tmp_path / "s.csv", ["a", "b"], [Instances.from_labels(mask), Instances.empty(SHAPE)], profile
    )
    assert path.read_bytes() == text.encode()
    assert check_submission(path, profile, SHAPES) == []
    back = read_submission(path, profile, SHAPES)
    assert list(back) == ["a", "b"]
    np.testing.assert_array_equal(back["a"].paint(), mask)
    assert len(back["b"]) == 0


@st.composite
def label_images(draw):
    shape = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    return [draw(hnp.arrays(np.int32, shape, elements=st.integers(0, 5))) for _ in range(draw(st.integers(1, 3)))]


@settings(max_examples=60, deadline=None)
@given(label_images(), st.sampled_from(sorted(PROFILES)))
def test_round_trip_loses_nothing(tmp_path_factory, images, profile):
    path = tmp_path_factory.mktemp("round") / "s.csv"
    ids = [f"image {k}, 'ä'" for k in range(len(images))]
    cells = [Instances.from_labels(image) for image in images]
    write_submission(path, ids, cells, profile)
    back = read_submission(path, profile, {i: c.shape for i, c in zip(ids, cells, strict=True)})
    assert list(back) == ids
    for before, after in zip(cells, back.values(), strict=True):
        np.testing.assert_array_equal(before.paint(), after.paint())


def test_write_refuses_what_the_competition_would(tmp_path):
    path = tmp_path / "s.csv"
    path.write_text("the previous one")
    cell = Instances.from_labels(np.ones(SHAPE, int))
    twice = Instances.concatenate([cell, cell])
    nothing = Instances.from_masks([np.zeros(SHAPE, bool)], SHAPE)
    refused = [
        (["a"], [twice], r"objects of image 'a' overlap\npass them through resolve_overlaps"),
        (["a"], [nothing], "objects of image 'a' have no pixel"),
        (["a", "a"], [cell, cell], "image id 'a' is given twice"),
        (["=cmd()"], [cell], "a spreadsheet would run it as a formula"),
        (["a\nb"], [cell], "holds a control character"),
        ([" a"], [cell], "begins or ends with a space"),
        ([""], [cell], "is empty"),
        (["a", "b"], [cell], "2 image ids, 1 predictions"),
    ]
    for ids, cells, message in refused:
        with pytest.raises(UserError, match=message):
            write_submission(path, ids, cells, "sartorius")
    assert path.read_text() == "the previous one"
    assert list(tmp_path.iterdir()) == [path]


def test_unknown_profile():
    with pytest.raises(UserError, match=r"no profile 'sartorious' \(did you mean 'sartorius'\?\)"):
        get_profile("sartorious")


# ---- check ---------------------------------------------------------------------------------------------------------
GOOD_ROWS = "a,1 2\nb,\n"


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("", 1, "the file is empty"),
        ("\ufeff" + HEADER + GOOD_ROWS, 1, "byte order mark"),
        ((HEADER + GOOD_ROWS).encode("utf-16"), 1, "UTF-16"),
        (HEADER.encode() + b"a,1 2\nb\xff,\n", 3, "not UTF-8"),
        (",id,predicted\n0,a,1 2\n1,b,\n", 1, "an index column ('') stands before 'id,predicted'"),
        ("Unnamed: 0,id,predicted\n0,a,1 2\n1,b,\n", 1, "an index column ('Unnamed: 0')"),
        ("predicted,id\n1 2,a\n,b\n", 1, "the columns are in the wrong order"),
        ("ImageId,EncodedPixels\n" + GOOD_ROWS, 1, "is that of dsb2018; sartorius wants 'id,predicted'"),
        ("id;predicted\na;1 2\nb;\n", 1, "separated by semicolons"),
        ("id\tpredicted\n", 1, "separated by tabs"),
        ("id,annotation\n" + GOOD_ROWS, 1, "the header is 'id,annotation', wanted 'id,predicted'"),
        (GOOD_ROWS, 1, "the header is 'a,1 2'"),
        (HEADER + "a,1 2\n\nb,\n", 3, "the line is blank"),
        (HEADER + "a,1 2\nb\n", 3, "one column, wanted two"),
        (HEADER + "a,1 2,0.9\nb,\n", 2, "3 columns, wanted two"),
        (HEADER + "a,1,2\nb,\n", 2, "3 columns, wanted two"),
        (HEADER + "a,1 2\nb,\n,1 2\n", 4, "the image id '' is empty"),
        (HEADER + "a,1 2\nb,\n=x,\n", 4, "as a formula"),
        (HEADER + "a,1.0 2.0\nb,\n", 2, "'1.0', a float"),
        (HEADER + "a,1e3 2\nb,\n", 2, "'1e3', a float"),
        (HEADER + "a,nan\nb,\n", 2, "holds 'nan'; leave it empty"),
        (HEADER + "a,-1 2\nb,\n", 2, "'-1', a negative number"),
        (HEADER + "a,1 x\nb,\n", 2, "the pairs hold 'x'"),
        (HEADER + "a,[1 2]\nb,\n", 2, "the pairs hold '[1'"),
        (HEADER + 'a,"[1, 3]"\nb,\n', 2, "the pairs hold '[1,'"),
        (HEADER + 'a,"1,3 5,2"\nb,\n', 2, "the pairs hold '1,3'"),
        (HEADER + "a,1.0 3.0\nb,\n", 2, "'1.0', a float"),
        ("id,predicted,Unnamed: 2\na,1 2,0\nb,,1\n", 1, "the header is 'id,predicted,Unnamed: 2'"),
        (HEADER + "a,١ ٢\nb,\n", 2, "wanted whole numbers"),
        (HEADER + "a,1 99999999999999999999\nb,\n", 2, "larger than any image"),
        (HEADER + "a,1 2 3\nb,\n", 2, "the pairs are 3 numbers"),
        (HEADER + "a,0 2\nb,\n", 2, "a run starts at 0; pixels count from 1"),
        (HEADER + "a,1 0\nb,\n", 2, "the run at 1 has length 0"),
        (HEADER + "a,5 2 1 2\nb,\n", 2, "not sorted: the run at 1 follows the one at 5"),
        (HEADER + "a,1 3 3 2\nb,\n", 2, "runs of the line overlap"),
        (HEADER + "a,11 3\nb,\n", 2, "ends at pixel 13, the image has 3 x 4 = 12"),
        (HEADER + "a,13 1\nb,\n", 2, "ends at pixel 13"),
        (HEADER + "a,1 2\na,2 2\nb,\n", 3, "shares pixels with line 2"),
        (HEADER + "a,1 2\na,5 1\na,1 2\nb,\n", 4, "repeats line 2"),
        (HEADER + "a,1 9\na,3 1\na,5 1\nb,\n", 4, "shares pixels with line 2"),
        (HEADER + "a,1 2\na,\nb,\n", 3, "has an empty row, and line 2 too"),
        (HEADER + "a,1 2\nb,\nb,\n", 4, "has an empty row, and line 3 too"),
        (HEADER + "a,1 2\n", 0, "image 'b' is missing"),
        (HEADER + "a,1 2\nb,\nc,\n", 4, "image 'c' is not in the test set"),
    ],
)
def test_every_refusal_names_line_and_reason(tmp_path, text, line, reason):
    found = problems_of(tmp_path, text)
    assert any(at == line and reason in why for at, why in found), found
    with pytest.raises(UserError, match=r"is no valid submission: .*\n`cellkit check-submission` lists every problem"):
        read_submission(saved(tmp_path, text), "sartorius", SHAPES)


@pytest.mark.parametrize(
    "text",
    [
        HEADER + GOOD_ROWS,
        HEADER + "b,\na,1 2\n",
        HEADER + "a,1 2\na,3 1 5 1\nb,\n",
        HEADER + 'a,"1 2"\nb,""\n',
        HEADER + '"a",1 2\n"b",\n',
        HEADER.strip() + "\r\na,1 2\r\nb,\r\n",
        HEADER + "a,1 12\nb,12 1",
        HEADER + "a,1 2 3 1\nb, \n",
    ],
)
def test_good_files_pass(tmp_path, text):
    assert problems_of(tmp_path, text) == []


def test_one_problem_per_pair_of_objects(tmp_path):
    text = HEADER + "a,1 4 5 4\na,2 1 6 1\nb,\n"
    assert problems_of(tmp_path, text) == [(3, "the object shares pixels with line 2; objects may not overlap")]


def test_without_shapes_only_the_file_itself_is_checked(tmp_path):
    assert problems_of(tmp_path, HEADER + "x,1 200\n", shapes=None) == []
    assert len(problems_of(tmp_path, HEADER + "x,1 200\nx,5 5\n", shapes=None)) == 1


def test_problem_reads_as_a_sentence():
    assert str(Problem(3, "the line is blank")) == "line 3: the line is blank"
    assert str(Problem(0, "image 'b' is missing")) == "image 'b' is missing"


def test_missing_file():
    with pytest.raises(UserError, match="no file at nowhere.csv"):
        check_submission("nowhere.csv", "sartorius")


def test_truth_in_submission_form_may_overlap(tmp_path):
    path = saved(tmp_path, HEADER + "a,1 4\na,3 4\nb,\n")
    with pytest.raises(UserError, match="line 3: the object shares pixels"):
        read_submission(path, "sartorius", SHAPES)
    assert read_submission(path, "sartorius", SHAPES, allow_overlaps=True)["a"].areas_px.tolist() == [4, 4]


def disc(shape, y, x, radius):
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


@pytest.mark.parametrize(("profile", "other"), [("sartorius", "dsb2018"), ("dsb2018", "sartorius")])
def test_the_wrong_order_of_pixels_is_noticed(tmp_path, profile, other):
    shape = (60, 90)
    cells = Instances.from_masks([disc(shape, 15, 15, 9), disc(shape, 40, 60, 12)], shape)
    path = write_submission(tmp_path / "s.csv", ["a"], [cells], other)
    text = path.read_text().replace(",".join(PROFILES[other].columns), ",".join(PROFILES[profile].columns))
    path.write_text(text)
    problems = check_submission(path, profile, {"a": shape})
    assert [(p.line, p.reason) for p in problems] == [
        (0, f"the pairs were counted {PROFILES[other].order}, {profile} counts pixels {PROFILES[profile].order}")
    ]


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("scale", [0.5, 0.75, 0.9, 1])
@pytest.mark.parametrize("shape", [(200, 300), (240, 240)])
def test_cells_of_a_smaller_picture_are_noticed(tmp_path, profile, scale, shape):
    """Nothing leaves the image, so only the distance of a cell's rows tells."""
    small = int(shape[0] * scale), int(shape[1] * scale)
    cells = Instances.from_masks([disc(small, y, x, 6) for y in (20, 60, 90) for x in (12, 50, 80)], small)
    path = write_submission(tmp_path / "s.csv", ["a"], [cells], profile)
    reasons = [problem.reason for problem in check_submission(path, profile, {"a": shape})]
    if scale == 1:
        assert reasons == []
    else:
        line = small[profile == "sartorius"]
        assert len(reasons) == 1 and reasons[0].startswith("the pairs were counted in pictures with ")
        assert f" of about {line} px; 'a' is {shape[0]} x {shape[1]}: " in reasons[0]


@pytest.mark.parametrize("profile", PROFILES)
def test_odd_cells_of_the_right_size_are_not_suspected(tmp_path, profile):
    shape = (64, 80)
    rows, columns = np.indices(shape)
    slanted = [np.abs(columns - 3 * rows) < 2, np.abs(columns + 3 * rows - 79) < 2]
    odd = [(rows + columns) % 2 == 0, *slanted, rows == 3, columns == 9, (rows % 2 == 0) & (columns % 5 == 0)]
    for mask in odd:
        for other in (mask, mask & ~odd[0]):
            cells = Instances.from_masks([other], shape)
            if len(cells) and cells.areas_px[0]:
                path = write_submission(tmp_path / "s.csv", ["a"], [cells], profile)
                assert check_submission(path, profile, {"a": shape}) == []


def test_every_id_of_the_sample_has_a_row(tmp_path):
    sample = tmp_path / "sample_submission.csv"
    sample.write_text("\ufeffid,predicted\r\nb,1 1\r\nb,3 1\r\na,\r\nblurred,\r\n")
    assert sample_ids(sample, "sartorius") == ["b", "a", "blurred"]
    path = saved(tmp_path, HEADER + "a,1 2\nx,\nb,\n")
    told = [
        (p.line, p.reason.split(";")[0])
        for p in check_submission(path, "sartorius", ids=sample_ids(sample, "sartorius"))
    ]
    assert told == [(0, "image 'blurred' is missing"), (3, "image 'x' is not in the test set")]
    with pytest.raises(UserError, match="has no column 'ImageId'"):
        sample_ids(sample, "dsb2018")
    with pytest.raises(UserError, match="no file at"):
        sample_ids(tmp_path / "none.csv", "dsb2018")


TRAIN = "id,annotation,width,height,cell_type,plate_time,sample_date,sample_id,elapsed_timedelta\n"


def test_the_competitions_own_table_is_a_truth(tmp_path, said):
    """Sartorius' train.csv has the sizes and classes; DSB2018's solution the sizes."""
    table = tmp_path / "train.csv"
    table.write_text(TRAIN + "a,2 1 6 1,4,3,shsy5y,x,y,z,w\na,3 2,4,3,shsy5y,x,y,z,w\nb,1 4,4,3,astro,x,y,z,w\n")
    assert is_truth_table(table)
    records, cells, classes, _ = read_truth_table(table)
    assert [(r.image_id, r.height_px, r.width_px, r.cell_type) for r in records] == [
        ("a", 3, 4, "shsy5y"),
        ("b", 3, 4, "astro"),
    ]
    assert (classes, [x.class_ids.tolist() for x in cells]) == (("astro", "shsy5y"), [[2, 2], [1]])
    np.testing.assert_array_equal(cells[0].paint(), [[0, 1, 2, 2], [0, 1, 0, 0], [0, 0, 0, 0]])
    submission = saved(tmp_path, HEADER + "a,2 1 6 1\na,3 2\nb,1 4\n")
    for sides in ((table, submission), (submission, table)):
        code, out, err = said("score", *sides, "--profile", "sartorius", "--convention", "kaggle", "--bootstrap", "0")
        assert code == 0 and "kaggle        1.000" in out, err
    solution = tmp_path / "stage1_solution.csv"
    solution.write_text("ImageId,EncodedPixels,Height,Width,Usage\na,4 2,3,4,Public\nb,,3,4,Public\n")
    _, cells, classes, _ = read_truth_table(solution)
    assert (classes, [len(x) for x in cells]) == ((), [1, 0])
    np.testing.assert_array_equal(np.argwhere(cells[0].paint()), [[0, 1], [1, 1]])
    assert not is_truth_table(submission)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ("a,1 2,4,3,x,,,,\na,1 2,5,3,x,,,,\n", "line 3: image 'a' has two sizes"),
        ("a,1 2,4,,x,,,,\n", "line 2 has no id, height or width"),
        ("a,1 2 3,4,3,x,,,,\n", "line 2: the pairs are 3 numbers"),
        ("a,1.5 2,4,3,x,,,,\n", "line 2: the pairs hold '1.5', a float"),
        ("a,12 2,4,3,x,,,,\n", "line 2: the run at 12 ends at pixel 13"),
        ("", "has no row"),
    ],
)
def test_a_table_of_truth_with_a_fault_is_refused(tmp_path, rows, reason):
    (tmp_path / "train.csv").write_text(TRAIN + rows)
    with pytest.raises(UserError, match=reason):
        read_truth_table(tmp_path / "train.csv")


def mangle(text, rng):
    """Damage a valid file: bytes flipped, cut, repeated, swapped."""
    raw = bytearray(text.encode())
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(raw) + 1)
        kind = rng.randrange(5)
        if kind == 0 and raw:
            raw[at % len(raw)] = rng.randrange(256)
        elif kind == 1:
            raw[at:at] = rng.choice(
                [b",", b" ", b"\n", b'"', b"-", b"9" * 30, b"\x00", b"e5", b".", b"\r", b"\xef\xbb\xbf"]
            )
        elif kind == 2:
            del raw[at : at + rng.randint(1, 10)]
        elif kind == 3:
            raw[at:at] = raw[rng.randrange(len(raw) + 1) :][: rng.randint(1, 30)]
        else:
            lines = raw.split(b"\n")
            rng.shuffle(lines)
            raw = bytearray(b"\n".join(lines))
    return bytes(raw)


def test_mangled_files_are_refused_or_read_never_worse(tmp_path):
    shape = (6, 7)
    cells = Instances.from_labels(np.arange(42).reshape(shape) // 5 % 4)
    good = write_submission(tmp_path / "s.csv", ["a", "b"], [cells, Instances.empty(shape)], "sartorius").read_text()
    shapes, rng, refused = {"a": shape, "b": shape}, random.Random(0), 0
    for _ in range(1000):
        path = saved(tmp_path, mangle(good, rng))
        problems = check_submission(path, "sartorius", shapes)
        assert all(problem.reason for problem in problems)
        try:
            objects = read_submission(path, "sartorius", shapes)
        except UserError:
            refused += 1
            assert problems
        else:
            assert not problems
            assert not any(found.overlapping for found in objects.values())
            assert all(found.areas_px.min(initial=1) >= 1 for found in objects.values())
    assert refused > 700


# ---- overlaps ------------------------------------------------------------------------------------------------------
def rows(*texts):
    return np.array([[int(c) for c in text] for text in texts], bool)


def test_higher_score_keeps_the_pixel_earlier_object_a_tie():
    masks = [rows("1110"), rows("0111"), rows("0011")]
    objects, log = resolve_overlaps(Instances.from_masks(masks, (1, 4), [1, 2, 3], [0.5, 0.9, 0.9]))
    assert objects.paint().tolist() == [[1, 2, 2, 2]]
    assert objects.class_ids.tolist() == [1, 2]
    assert objects.scores.tolist() == [0.5, 0.9]
    assert log == [
        Change(0, "lost to higher scores", 2),
        Change(2, "lost to higher scores", 2),
        Change(2, "dropped: covered by higher scores", 0),
    ]


def test_a_small_object_wins_no_pixel_before_it_is_dropped():
    masks = [rows("11111"), rows("00100")]
    objects, log = resolve_overlaps(Instances.from_masks(masks, (1, 5), scores=[0.1, 0.9]), min_area_px=2)
    assert objects.paint().tolist() == [[1, 1, 1, 1, 1]]
    assert log == [Change(1, "dropped: smaller than 2 px", 1)]


def test_what_is_left_too_small_is_dropped_too():
    masks = [rows("1110"), rows("0111")]
    objects, log = resolve_overlaps(Instances.from_masks(masks, (1, 4), scores=[0.1, 0.9]), min_area_px=2)
    assert objects.paint().tolist() == [[0, 1, 1, 1]]
    assert log == [Change(0, "lost to higher scores", 2), Change(0, "dropped: smaller than 2 px", 1)]


@settings(max_examples=80, deadline=None)
@given(
    hnp.arrays(bool, st.tuples(st.integers(0, 5), st.integers(1, 6), st.integers(1, 7))),
    st.data(),
    st.integers(0, 4),
)
def test_resolved_objects_are_disjoint_and_stay_so(masks, data, least):
    scores = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(masks), max_size=len(masks)))) / 3
    cells = Instances.from_masks(list(masks), masks.shape[1:], scores=scores)
    objects, log = resolve_overlaps(cells, least)
    assert not objects.overlapping
    assert objects.areas_px.min(initial=max(least, 1)) >= max(least, 1)
    dropped = {change.index for change in log if change.what.startswith("dropped")}
    assert len(objects) == len(cells) - len(dropped)
    np.testing.assert_array_equal(objects.scores, np.delete(scores, sorted(dropped)))
    again, nothing = resolve_overlaps(objects, least)
    assert again == objects
    assert nothing == []
    union = masks.any(axis=0) if len(masks) else np.zeros(masks.shape[1:], bool)
    assert not (objects.paint() > 0)[~union].any()


def test_pieces_of_a_cell_stay_together():
    kept, log = resolve_overlaps(Instances.from_masks([rows("110011")], (1, 6)))
    assert kept.areas_px.tolist() == [4]
    assert log == []


def test_resolver_refuses_a_score_that_is_no_number():
    cell = Instances.from_masks([rows("11")], (1, 2))
    with pytest.raises(UserError, match="score nan"):
        resolve_overlaps(cell.with_scores(np.nan))


# ---- real data -----------------------------------------------------------------------------------------------------
@pytest.mark.realdata
@pytest.mark.skipif(not (DATA / "sartorius" / "train.csv").is_file(), reason="no real data folder")
def test_sartorius_training_cells_read_write_and_order(tmp_path):
    import csv

    texts = {}
    with open(DATA / "sartorius" / "train.csv", newline="") as file:
        for row in csv.DictReader(file):
            texts.setdefault(row["id"], []).append(row["annotation"])
    chosen = sorted(texts)[:12]
    cells = [Instances.from_kaggle_rle(texts[i], (520, 704), "row-major") for i in chosen]
    resolved = [resolve_overlaps(image)[0] for image in cells]
    path = write_submission(tmp_path / "s.csv", chosen, resolved, "sartorius")
    shapes = dict.fromkeys(chosen, (520, 704))
    assert check_submission(path, "sartorius", shapes) == []
    back = read_submission(path, "sartorius", shapes)
    assert all(np.array_equal(back[i].paint(), c.paint()) for i, c in zip(chosen, resolved, strict=True))
    path = write_submission(tmp_path / "d.csv", chosen, resolved, "dsb2018")
    path.write_text(path.read_text().replace("ImageId,EncodedPixels", "id,predicted"))
    assert [p.reason for p in check_submission(path, "sartorius", shapes)] == [
        "the pairs were counted column-major, sartorius counts pixels row-major"
    ]
