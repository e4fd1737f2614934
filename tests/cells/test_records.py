"""Records: the table comes back as it was written, its faults are named by line, and splits keep groups whole."""

import csv
import math
import os
import re
from dataclasses import astuple, fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from record_cases import image

from cellkit.cells.records import SPLITS, ImageRecord, read_records, select, write_records
from cellkit.errors import UserError
from cellkit.files import as_cell, from_cell

HEADER = "image_id,path,height_px,width_px,channels,cell_type,group,split,um_per_px,flags,source,file,scene,time,planes"

GOOD = "a,images/a.png,10,20,red=;green=GFP;blue=DAPI,HEK,A1,train,0.325,,raw/a.czi scene 0,raw/a.czi,0,0,z max of 5"


def saved(tmp_path, *lines, encoding="utf-8"):
    path = tmp_path / "records.csv"
    path.write_bytes("\n".join([*lines, ""]).encode(encoding))
    return path


def refused(path):
    with pytest.raises(UserError) as error:
        read_records(path)
    assert str(path) in str(error.value), "the file is named"
    return str(error.value)


# ---- the table -----------------------------------------------------------------------------------------------------


def test_the_table_as_it_is_written(tmp_path):
    record = ImageRecord(
        "a",
        "images/a.png",
        10,
        20,
        "red=;green=GFP;blue=DAPI",
        "HEK",
        "A1",
        "train",
        0.325,
        "",
        "raw/a.czi scene 0",
        "raw/a.czi",
        0,
        0,
        "z max of 5",
    )
    path = write_records(tmp_path / "records.csv", [record, image("b")])
    assert path.read_text() == f"{HEADER}\n{GOOD}\nb,images/b.png,10,20,,,,,,,,,0,0,\n"
    back = read_records(path)
    assert back[0] == record
    assert (back[1].split, math.isnan(back[1].um_per_px)) == ("", True)
    assert list(tmp_path.iterdir()) == [path]


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)

RECORDS = st.lists(
    st.builds(
        ImageRecord,
        **{f.name: TEXT for f in fields(ImageRecord) if f.type == "str" and f.name != "split"},
        height_px=st.integers(1, 10**6),
        width_px=st.integers(1, 10**6),
        split=st.sampled_from(SPLITS),
        um_per_px=st.just(math.nan) | st.floats(1e-6, 1e6),
    ),
    max_size=5,
    unique_by=lambda record: record.image_id,
)


@settings(max_examples=200, deadline=None)
@given(RECORDS)
def test_what_is_written_comes_back(tmp_path_factory, records):
    path = write_records(tmp_path_factory.mktemp("records") / "records.csv", records)
    plain = [[None if value != value else value for value in astuple(record)] for record in records]
    assert [[None if value != value else value for value in astuple(record)] for record in read_records(path)] == plain
    assert b"\r\n" not in path.read_bytes() or any("\r\n" in str(value) for record in plain for value in record)


@pytest.mark.parametrize("name", ["a\rb", "a\r\nb", "\n", '"', ",", "'", " a ", "-x", "=1+1", "{}", "é 細胞", "Icon\r"])
def test_names_that_bite(tmp_path, name):
    records = [image("1", source=name), image("2", group=name)]
    back = read_records(write_records(tmp_path / "records.csv", records))
    assert [(r.source, r.group) for r in back] == [(name, ""), ("", name)]


@pytest.mark.parametrize("name", ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "'=x", "''-", "'plain"])
def test_no_cell_of_a_table_is_run_by_a_spreadsheet(tmp_path, name):  # fault 46
    path = write_records(tmp_path / "records.csv", [image("a", source=name, group=name, cell_type=name)])
    with open(path, newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert row["source"] == as_cell(name) and not re.match(r"[=+\-@\t\r]", row["source"])
    (back,) = read_records(path)
    assert (back.source, back.group, back.cell_type) == (name, name, name)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=8) | st.from_regex(r"\A'*[=+\-@\t\r].{0,3}\Z"))
def test_what_is_escaped_comes_back(text):
    assert from_cell(as_cell(text)) == text
    assert as_cell(text)[:1] not in ("=", "+", "-", "@", "\t", "\r")


def test_other_tables_are_escaped_and_submissions_refuse_such_ids(tmp_path):  # fault 46
    from cellkit.cells.instances import Instances
    from cellkit.files import write_table
    from cellkit.formats.submission import write_submission

    path = write_table(tmp_path / "labels.csv", [{"image_id": "=1+1", "n": -1.5, "note": "@x"}])
    assert path.read_text() == "image_id,n,note\n'=1+1,-1.5,'@x\n"
    with pytest.raises(UserError, match="formula"):
        write_submission(tmp_path / "s.csv", ["=1+1"], [Instances.empty((4, 4))], "sartorius")
    assert not (tmp_path / "s.csv").exists()


def test_a_source_that_is_no_utf8_is_written_readably(tmp_path):
    name = os.fsdecode(b"caf\xe9/1.tif")
    path = write_records(tmp_path / "records.csv", [image("a", source=name, group=name)])
    (back,) = read_records(path)
    assert (back.source, back.group) == (r"caf\xe9/1.tif", r"caf\xe9/1.tif"), "one way: it tells the name, no more"
    assert read_records(write_records(path, [back])) == [back] or math.isnan(back.um_per_px)
    for bad in (replace(image("a"), path=name), image(name)):
        with pytest.raises(UserError, match=r"has a name that is no UTF-8\nname images with"):
            write_records(tmp_path / "other.csv", [bad])


def test_a_table_saved_by_a_spreadsheet_is_read(tmp_path):
    path = saved(tmp_path, f"{HEADER},note\r", f"{GOOD},seen\r", encoding="utf-8-sig")
    (record,) = read_records(path)
    assert (record.image_id, record.um_per_px) == ("a", 0.325)


def test_no_record_is_a_table_too(tmp_path):
    assert read_records(write_records(tmp_path / "records.csv", [])) == []


def test_two_images_of_one_name_are_refused_both_ways(tmp_path):
    path = write_records(tmp_path / "records.csv", [image("kept")])
    same = [image("x", source="a/1.tif"), image("y"), image("x", source="b/1.tif")]
    with pytest.raises(UserError, match="two images are called 'x': a/1.tif and b/1.tif\nrename one"):
        write_records(path, same)
    assert [r.image_id for r in read_records(path)] == ["kept"]
    with pytest.raises(UserError, match="two images are called 'a': raw/a.czi scene 0 and raw/a.czi scene 0"):
        read_records(saved(tmp_path, HEADER, GOOD, GOOD))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (GOOD.replace("10", "ten"), "invalid literal for int() with base 10: 'ten'"),
        (GOOD.replace("10", ""), "height_px, width_px, scene and time are whole numbers"),
        (GOOD.replace("10", "10.5"), "height_px, width_px, scene and time are whole numbers"),
        (GOOD.replace("10", "0"), "an image of 0 x 20 px"),
        (GOOD.replace("20", "-20"), "an image of 10 x -20 px"),
        (GOOD.replace("0.325", "fine"), "um_per_px a number or empty"),
        (GOOD.replace("train", "training"), "split is 'training'\na split is train, val, test or empty"),
        (GOOD.replace("train", "Train"), "split is 'Train'"),
        (GOOD.replace(",0,0,", ",first,0,"), "scene and time are whole numbers"),
        ("a,images/a.png,10,20", "has too few fields"),
        (GOOD.rpartition(",")[0], "has too few fields"),
        (f"{GOOD},more", "has too many fields"),
    ],
)
def test_a_fault_is_named_by_its_line(tmp_path, line, reason):
    other = GOOD.replace("a,", "b,", 1)
    message = refused(saved(tmp_path, HEADER, other, line))
    assert reason in message and "records.csv line 3" in message
    assert " line 5" in refused(saved(tmp_path, HEADER, other.replace("raw", '"two\nlines"', 1), "", line)), (
        "as an editor counts"
    )


def test_a_table_of_other_columns_is_refused(tmp_path):
    assert "lacks the columns group, split" in refused(saved(tmp_path, HEADER.replace("group,split,", ""), GOOD))
    assert "lacks the column image_id" in refused(saved(tmp_path, HEADER.replace(",", ";"), GOOD)).replace(
        "columns", "column"
    )
    assert "lacks the column image_id" in refused(saved(tmp_path)).replace("columns", "column")


def test_what_is_no_table_is_refused(tmp_path):
    assert "no file at" in refused(tmp_path / "records.csv")
    assert "no file at" in refused(tmp_path)
    assert "no CSV in UTF-8" in refused(saved(tmp_path, HEADER, GOOD, encoding="utf-16"))
    assert "no CSV in UTF-8" in refused(saved(tmp_path, HEADER, GOOD.replace("HEK", "ü"), encoding="latin-1"))
    assert "no CSV in UTF-8" in refused(saved(tmp_path, HEADER, GOOD.replace("HEK", "H" * 200_000)))


def test_select():
    records = [
        image(k, split=split, cell_type=kind)
        for k, (split, kind) in enumerate([("train", "A"), ("val", "A"), ("train", "B")])
    ]
    names = lambda found: [r.image_id for r in found]  # noqa: E731
    assert names(select(records)) == ["0", "1", "2"]
    assert names(select(records, split="train")) == ["0", "2"]
    assert names(select(records, cell_type="A")) == ["0", "1"]
    assert names(select(records, "train", "B")) == ["2"]
    assert names(select(records, split="")) == []
