"""The benchmark of the real sets: which runs it makes, with which commands, and what it names as missing."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import which_way

from cellkit.errors import UserError
from cellkit.files import write_json
from cellkit.pages.ways_tables import BEGIN, END


def test_a_set_comes_before_its_other_engines_and_what_is_not_installed_is_missing(monkeypatch):
    jobs, _ = which_way.jobs_of(
        ["two_lines", "dkfz"], ["maskrcnn_torchvision"], ["mine"], {"dkfz": ["finetune.steps=9"]}
    )
    assert [job.name for job in jobs] == ["two_lines", "dkfz"]
    assert jobs[1].command(Path("runs/dkfz"))[2:] == [
        "cellkit", "run", "configs/dkfz.yaml", "--run", "runs/dkfz", "--set",
        "precision=float32", "recipes.mine={}", "finetune.steps=9",
    ]  # fmt: skip

    def check(name):
        if name == "maskrcnn_detectron2":
            raise UserError("it needs the package 'detectron2'", "conda")

    monkeypatch.setattr(which_way, "check_backend", check)
    jobs, missing = which_way.jobs_of(["dkfz"], which_way.ENGINES, [], {})
    assert [job.name for job in jobs] == ["dkfz"]
    assert [(item.item, item.reason) for item in missing] == [
        ("dkfz, Mask R-CNN, detectron2", "it needs the package 'detectron2'")
    ]


def test_another_engine_has_a_run_of_its_own_after_the_set_and_a_line_in_its_command(monkeypatch):
    monkeypatch.setattr(which_way, "check_backend", lambda name: None)
    jobs, missing = which_way.jobs_of(["dkfz", "two_lines"], which_way.ENGINES, [], {})
    assert [job.name for job in jobs] == ["dkfz", "dkfz_detectron2", "two_lines", "two_lines_detectron2"]
    assert jobs[1].command(Path("r"))[-1] == "maskrcnn.backend=maskrcnn_detectron2"
    assert missing == []


@pytest.fixture
def work(tmp_path):
    entry = {"status": "finished", "outputs": {}}
    stages = {name: entry for name in ("01_convert", which_way.LAST)}
    for name, own in (("dkfz", stages), ("two_lines", {"01_convert": entry})):
        write_json(tmp_path / name / "manifest.json", {"format": 1, "stages": own, "attempts": {}})
    return tmp_path


def test_runs_that_did_not_end_and_recipes_that_did_not_run_are_named(work, monkeypatch):
    jobs = [which_way.Job(name) for name in which_way.SETS]
    monkeypatch.setattr(which_way, "recipe_paths", lambda folder: [Path("11_unet_border.ipynb")])
    lacking = [(item.item, item.reason) for item in which_way.unfinished(jobs, work)]
    assert lacking == [
        ("dkfz, recipe unet_border", "not run"),
        ("two_lines", "not run to its end (finished: 01_convert)"),
        ("dsb2018", "not run to its end (finished: nothing)"),
    ]
    stages = {"11_unet_border": {"status": "finished", "outputs": {}}}
    write_json(work / "dkfz_border" / "manifest.json", {"format": 1, "stages": stages, "attempts": {}})
    assert len(which_way.unfinished(jobs, work, [work / "dkfz_border"])) == 2


def test_another_engine_begins_with_a_copy_of_a_finished_run_alone(work, monkeypatch):
    called = []
    monkeypatch.setattr(which_way.subprocess, "run", lambda command, **how: called.append((command, how)))
    for name in ("dkfz", "two_lines"):
        which_way.run_job(which_way.Job(name, "maskrcnn_detectron2"), work)
    assert (work / "dkfz_detectron2" / "manifest.json").is_file()
    assert not (work / "two_lines_detectron2").exists()
    assert [how["env"]["OMP_NUM_THREADS"] for _, how in called] == ["1", "1"]


def test_what_the_page_tells_of_sets_that_are_not_run_stays(tmp_path):
    page = tmp_path / "page.md"
    missing = "## Missing\n\n- dkfz: not run\n- dsb2018: not run"
    page.write_text(f"{BEGIN}\n\nConventions\n\n## dkfz, dkfz_more\n\n### Score\n\n## dsb2018\n\n{missing}\n\n{END}\n")
    parts, lacking = which_way.of_other_sets(page, ["dsb2018"])
    assert parts == ["## dkfz, dkfz_more\n\n### Score"]
    assert [item.item for item in lacking] == ["dkfz"]
    assert which_way.of_other_sets(page, which_way.SETS) == ([], [])
