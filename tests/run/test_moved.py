"""A run folder that moves, with its data and configuration, to another place or machine: nothing is repeated that need not be."""

from __future__ import annotations

import json
import os
import platform
import shutil
from pathlib import Path

import pytest
from run_cases import ONE, THREE, TWO, done, finished, go, here, reasons, states, tree, write_notebook  # noqa: F401

from cellkit.manifest import read_manifest
from cellkit.run.runner import run_notebooks

READS = "from cellkit.under_way import note_reading\nnote_reading({path})"
BASE = "from cellkit.fetch.find import find_weights\nprint(find_weights('starter_light'))"


def move(old: Path, new: Path, monkeypatch) -> None:
    """Move everything, as to a machine where nothing of the old place is known."""
    shutil.move(old, new)
    monkeypatch.chdir(new)
    monkeypatch.setattr(platform, "node", lambda: "another-machine")


def make(root: Path, cells: list[str], **options) -> int:
    write_notebook(
        Path("notebooks"), ONE, [*cells, "stage.path('a.txt').write_text('a')\nstage.done(a=stage.path('a.txt'))"]
    )
    return go(**options)


@pytest.fixture
def old(here, monkeypatch) -> Path:  # noqa: F811
    place = here / "old"
    (place / "configs").mkdir(parents=True)
    (place / "configs" / "demo.yaml").write_text("seed: 1\n")
    (place / "mine").mkdir()
    (place / "mine" / "a.tif").write_text("cells")
    monkeypatch.chdir(place)
    return place


def test_a_finished_run_is_fresh_where_it_is_now(old, monkeypatch, capsys):
    assert make(old, [READS.format(path="'mine'"), BASE]) == 0
    move(old, old.parent / "new", monkeypatch)
    before = tree()
    capsys.readouterr()
    assert go() == 0 and "nothing to do" in capsys.readouterr().err
    assert states() == {ONE: ("fresh", "")} and tree() == before
    Path("mine/a.tif").write_text("other")
    assert "a.tif changed" in reasons("stale", ONE)


def test_a_setting_with_an_absolute_path_is_known_by_what_lies_there(old, monkeypatch):
    """As a configuration names one, and as one whose relative path counted from the file's own folder becomes."""
    (old / "configs" / "demo.yaml").write_text("seed: 1\nlabel: {use: mine}\n")
    label = "from cellkit.labelling.corrections import corrections_folder\n"
    label += "from cellkit.under_way import note_reading\n"
    label += "note_reading(load_config(config, overrides).label.use, 'corrections')"
    write_notebook(
        old / "notebooks", TWO, [label, "stage.path('b.txt').write_text('b')\nstage.done(b=stage.path('b.txt'))"]
    )
    (old / "elsewhere").mkdir()
    shutil.move(old / "mine", old / "configs" / "mine")
    os.chdir(old / "elsewhere")
    given = {"config_path": "../configs/demo.yaml", "run_dir": "../runs/demo", "notebooks": "../notebooks"}
    assert run_notebooks(**given) == 0
    noted = read_manifest(old / "runs/demo")["stages"][TWO]
    assert Path(noted["config"]["use"]).is_absolute(), "what is tried"
    move(old, old.parent / "new", monkeypatch)
    os.chdir("elsewhere")
    from cellkit.run.stale import check

    told = lambda: check(Path("../runs/demo"), "../configs/demo.yaml", notebooks="../notebooks")[0]  # noqa: E731
    assert (told().state, told().why) == ("fresh", "")
    Path("../configs/mine/a.tif").write_text("other")
    assert "a.tif changed" in told().why and "new/configs/mine, was" in told().why
    shutil.rmtree("../configs/mine")
    assert told().state == "stale"


def test_a_relative_path_of_a_configuration_used_from_another_folder_repeats_nothing(old):
    (old / "demo.yaml").write_text("seed: 1\nlabel: {use: mine}\n")
    label = "from cellkit.under_way import note_reading\n"
    label += "note_reading(load_config(config, overrides).label.use, 'corrections')"
    write_notebook(
        old / "notebooks", TWO, [label, "stage.path('b.txt').write_text('b')\nstage.done(b=stage.path('b.txt'))"]
    )
    assert run_notebooks("demo.yaml", "runs/demo", notebooks="notebooks") == 0
    assert read_manifest(old / "runs/demo")["stages"][TWO]["config"]["use"] == "mine"
    (old / "elsewhere").mkdir()
    os.chdir(old / "elsewhere")
    from cellkit.run.stale import check

    assert [one.state for one in check("../runs/demo", "../demo.yaml", notebooks="../notebooks")] == ["fresh"]
    (old / "mine" / "a.tif").write_text("other")
    assert [one.state for one in check("../runs/demo", "../demo.yaml", notebooks="../notebooks")] == ["stale"]


def test_an_interrupted_stage_goes_on_from_what_it_had(old, monkeypatch):
    """A training half done: what it had written is kept, as its inputs are the same wherever they lie now."""
    half = "kept = stage.folder / 'last.txt'\nassert not kept.exists() or kept.read_text() == 'half'\n"
    half += "was = kept.exists()\nkept.write_text('half')\nassert was, 'killed'"
    assert make(old, [READS.format(path="'mine'"), BASE, half]) == 1
    move(old, old.parent / "new", monkeypatch)
    assert go() == 0, "it was begun anew"


def test_an_interrupted_stage_whose_input_changed_on_the_way_begins_anew(old, monkeypatch):
    half = "kept = stage.folder / 'last.txt'\nwas = kept.exists()\nkept.write_text('half')\nassert not was, 'went on'\n1 / 0"
    assert make(old, [READS.format(path="'mine'"), half]) == 1
    move(old, old.parent / "new", monkeypatch)
    Path("mine/a.tif").write_text("other")
    assert go() == 1 and not [n for n in (old.parent / "new").rglob("went on")]
    assert "ZeroDivisionError" in read_manifest(Path("runs/demo"))["attempts"][ONE]["error"]


def test_a_lock_and_a_process_number_of_another_machine_hold_nobody_up(done, monkeypatch):  # noqa: F811
    """The manifest of a run that was killed there names a process that here is another one."""
    manifest = read_manifest(Path("runs/demo"))
    manifest["attempts"][TWO] = {
        "attempt": "x",
        "status": "running",
        "pid": os.getpid(),
        "host": platform.node(),
        "started": "",
    }
    del manifest["stages"][TWO]
    Path("runs/demo/manifest.json").write_text(json.dumps(manifest))
    assert "running now" in reasons("missing", TWO)
    monkeypatch.setattr(platform, "node", lambda: "another-machine")
    assert reasons("failed", TWO) == "ended without a message (killed?)"
    Path("runs/demo/.lock").mkdir(exist_ok=True)
    Path("runs/demo/.lock/writer").write_text(f"process {os.getpid()} on another-machine")
    assert go() == 0 and states()[TWO] == ("fresh", "")


def test_the_outputs_of_a_run_name_no_place(finished):  # noqa: F811
    """No file of a run holds the folder it was made in, but for what the manifest notes of inputs and of the command."""
    place = str(finished).encode()
    for path in sorted(p for p in (finished / "runs").rglob("*") if p.is_file() and ".lock" not in p.parts):
        if path.name != "manifest.json":
            assert place not in path.read_bytes(), path
    manifest = read_manifest(finished / "runs" / "demo")
    for entry in manifest["stages"].values():
        assert str(finished) not in json.dumps({**entry, "inputs": {}})
