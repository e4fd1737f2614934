"""Files of a run that were damaged, cut short or written by hand: what a page says of them, and that all else stays."""

from __future__ import annotations

import logging
import re
import shutil

import pytest
from app_cases import Page as AppPage
from app_cases import finished, serving  # noqa: F401 - fixtures
from report_cases import Page

from cellkit.errors import UserError
from cellkit.pages import report, results


@pytest.fixture
def run(finished, tmp_path):  # noqa: F811
    """A copy of the run, to be damaged."""
    return shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns(".lock"))


NEEDED = {"decision.json": ("kept", "sentence"), "quality.json": ("words", "copies", "thresholds")}


def read(folder, name):
    files = results.RunFiles(folder)
    return files.json(name, *NEEDED.get(name, ())) if name.endswith(".json") else files.table(name)


HISTORY = "05_train_maskrcnn/history.csv"
DAMAGE = [
    ("attribution.csv", b"a,b\n1,2\n", "it has no column image_id; 06_evaluate_map_iou writes it"),
    ("attribution.csv", b"", "it is empty"),
    ("attribution.csv", b"image_id,kind\n\xff\xfe\xfa,\n", "codec can't decode"),
    ("scores.csv", b"model\n\x00\n1,2,3\n", ""),
    ("counts.csv", b"image_id,class_name,found,share\na,HEK,many,0.5\n", "column found holds 'many', no number"),
    ("counts.csv", b"image_id,class_name,found,share\na,HEK\n", "column found is empty in row 1"),
    ("cells.csv", b"image,label\na,1\n", "it has no column line"),
    ("quality.csv", b"x\n1\n", "it has no column image_id; 01_convert writes it"),
    (HISTORY, b"step,loss,score\n0,low,0.5\n", "column loss holds 'low', no number; 05_train_maskrcnn writes it"),
    ("summary.json", b"{", "it is no JSON"),
    ("summary.json", b"\xff\xfe\xfa", "it is no JSON"),
    ("summary.json", b"[" * 100_000, "it is no JSON"),
    ("summary.json", b"[]", "it holds no object of JSON; 06_evaluate_map_iou writes it"),
    ("summary.json", b'{"scores": {}, "best": 1}', "its part scores is dict"),
    ("decision.json", b'{"kept": "cellpose_tuned"}', "it has no part sentence; 03_finetune_cellpose writes it"),
    ("quality.json", b'{"words": [], "copies": []}', "it has no part thresholds"),
    ("sheet.json", b"3", "it holds no object of JSON; 04_cells_to_coco writes it"),
]


@pytest.mark.parametrize("name, content, words", DAMAGE)
def test_a_damaged_file_is_named_with_what_is_wrong_and_who_writes_it(tmp_path, name, content, words):
    (tmp_path / "run" / name).parent.mkdir(parents=True)
    (tmp_path / "run" / name).write_bytes(content)
    with pytest.raises(UserError, match=f"^run/{name} is damaged: .*{re.escape(words)}") as raised:
        read(tmp_path / "run", name)
    assert raised.value.remedy and len(str(raised.value).splitlines()) == 2
    assert str(tmp_path) not in str(raised.value), "a page tells nothing of the machine"


def test_what_reads_decision_or_summary_without_a_page_names_them_too(tmp_path):
    from cellkit.evaluate.verdict import images_to_decide, who_judged
    from cellkit.predict.kaggle_bundle import write_bundle

    (tmp_path / "decision.json").write_text("[")
    for read_it in (who_judged, lambda decisions: images_to_decide(None, decisions)):
        with pytest.raises(UserError, match="decision.json is damaged: it is no JSON\nrepeat `cellkit run`: 03"):
            read_it({"decision": tmp_path / "decision.json"})
    (tmp_path / "summary.json").write_text('{"best": []}')
    with pytest.raises(UserError, match="summary.json is damaged: its part best is list\nrepeat `cellkit run`: 06"):
        write_bundle(str(tmp_path), tmp_path / "out", "sartorius")


def test_a_table_cut_within_a_row_is_refused(run):
    whole = (run / "scores.csv").read_text()
    (run / "scores.csv").write_text(whole[: whole.rstrip("\n").rindex(",")])
    with pytest.raises(UserError, match="run/scores.csv is damaged: column fn is empty in row"):
        results.RunFiles(run).scores  # noqa: B018


def test_files_that_no_fault_is_in_are_read(run):
    for name in ("scores.csv", "attribution.csv", "counts.csv", "cells.csv", HISTORY, "summary.json"):
        assert len(read(run, name))
    assert read(run, "decision.json") == {}, "there is none"


def test_the_report_names_what_is_damaged_in_its_place(run):
    (run / "summary.json").write_text("[]")
    (run / "attribution.csv").write_text("image_id\na\n")
    (run / "decision.json").write_text("{")
    page = Page(report.page(results.RunFiles(run)))
    assert "No score: run/summary.json is damaged: it holds no object of JSON" in page.text
    assert "Left out: run/attribution.csv is damaged: it has no column cell_type" in page.text
    assert "No scores yet" not in page.text and "HEK" in page.text


def test_the_app_starts_without_a_summary_and_says_what_the_gallery_lacks(run, caplog):
    (run / "summary.json").write_text("{")
    with caplog.at_level(logging.WARNING), serving(run) as (desk, client):
        assert all("best of the run" not in one.title for one in desk.offered) and desk.offered
        told = AppPage(client, desk.key).call("gallery")
    assert told.status_code == 200 and "run/summary.json is damaged" in told.json()["why"]
    assert "run/summary.json is damaged" in caplog.text and "best is not known" in caplog.text


@pytest.mark.parametrize("content", ["a,b\n1,2\n", "", "twice"])
def test_a_damaged_attribution_leaves_the_gallery_out_alone(run, content):
    whole = (run / "attribution.csv").read_text()
    (run / "attribution.csv").write_text(whole + whole.split("\n", 1)[1] if content == "twice" else content)
    with serving(run) as (desk, client):
        page = AppPage(client, desk.key)
        told = page.call("gallery")
        assert told.status_code == 200 and told.json()["worst"] == [], told.text
        assert ("damaged" in told.json()["why"]) == (content != "twice") and told.json()["why"]
        assert page.call("worst", number=0).status_code == 422
