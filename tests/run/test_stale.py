"""What the runner repeats, and why."""

import json
import os
import shutil
from pathlib import Path

import pytest
from run_cases import (  # noqa: F401
    CONVERT,
    LABEL,
    ONE,
    PARAMETERS,
    THREE,
    TWO,
    done,
    finished,
    go,
    here,
    reasons,
    states,
    tree,
    write_notebook,
)

import cellkit.run.notebooks
import cellkit.run.stale
from cellkit.config.reading import load_config
from cellkit.errors import UserError
from cellkit.manifest import read_manifest
from cellkit.run.folder import Run
from cellkit.run.notebooks import read_notebooks
from cellkit.run.runner import run_notebooks
from cellkit.run.stale import check

# ---- what is repeated, and why


def test_everything_is_fresh_whatever_the_times(done):
    for path in Path("runs/demo").rglob("*"):
        os.utime(path, (0, 0))
    assert states() == {ONE: ("fresh", ""), TWO: ("fresh", "")}


def test_another_value_makes_its_stage_stale(done):
    Path("configs/demo.yaml").write_text("seed: 1\nlabel: {min_area_px: 3}\nworkers: 4\n")
    assert states(config_path="configs/demo.yaml")[ONE][0] == "fresh"
    assert reasons("stale", config_path="configs/demo.yaml") == "label.min_area_px 15 -> 3"


def test_another_notebook_makes_its_stage_stale_and_what_reads_from_it(done):
    write_notebook(done / "notebooks", ONE, [*CONVERT, "1 + 1"])
    assert reasons("stale", ONE) == "the notebook changed"
    assert reasons("stale", TWO) == f"its input records comes from {ONE}, which is stale"


def test_other_parameters_and_words_in_a_notebook_change_nothing(done):
    write_notebook(done / "notebooks", TWO, LABEL, parameters=[PARAMETERS.replace("demo", "other")], minutes=5)
    assert states()[TWO][0] == "fresh"


def test_another_package_makes_every_stage_stale(done, monkeypatch):
    monkeypatch.setattr(cellkit.run.stale, "package_sha256", lambda: "other")
    assert reasons("stale", ONE) == "the cellkit package changed"


def test_a_changed_or_missing_output_makes_its_stage_stale(done):
    Path("runs/demo/labels/a.tif").write_text("by hand")
    assert reasons("stale") == "output labels changed (labels)"
    shutil.rmtree("runs/demo/labels")
    assert reasons("stale") == "output labels is missing (labels)"


def test_a_changed_input_makes_the_reader_stale(done):
    Path("runs/demo/records.csv").write_text("tampered")
    assert "input records changed" in reasons("stale")
    with pytest.raises(UserError, match=f"'records' .* is not as {ONE} left it"):
        Run("runs/demo").find("records")


def test_a_changed_input_from_outside_makes_the_reader_stale(done):
    Path("raw").mkdir()
    Path("raw/a").write_text("1")
    write_notebook(done / "notebooks", ONE, ["stage.reads(raw='raw')", "stage.done()"])
    assert run_notebooks("configs/demo.yaml", "runs/raw", notebooks="notebooks", only="1") == 0
    Path("raw/a").write_text("2")
    assert "input raw changed" in check("runs/raw", notebooks="notebooks")[0].why


class Outside:
    """A stage by hand that reads what lies outside the run folder, as the notebooks do; and what becomes of that."""

    def __init__(self, folder: Path, monkeypatch):
        real = cellkit.run.notebooks.read_notebooks
        monkeypatch.setattr("cellkit.run.notebooks.read_notebooks", lambda folder=None: real(folder or "notebooks"))
        monkeypatch.delenv("CELLKIT_DATA", raising=False)
        write_notebook(folder / "notebooks", ONE, ["stage.done()"])
        for name, text in {
            "mine/a.tif": "1",
            "mine/b.tif": "2",
            "w.pt": "w",
            "w.json": "{}",
            "data/A/a.tif": "a",
        }.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        for name in (".zattrs", "0/.zarray", "zarr.json", "0/0"):
            path = folder / "data/A/b.ome.zarr" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
        (folder / "data/truth").symlink_to("A")

    def stage(self, read, **settings) -> str:
        """Run a stage that calls `read(stage)`; return why it is stale now, "" if it is fresh."""
        stage = Run("runs/demo").start(ONE, load_config("configs/demo.yaml", settings).convert)
        read(stage)
        stage.done()
        return self.why(**settings)

    def why(self, **settings) -> str:
        state, why = states(config_path="configs/demo.yaml", overrides=settings)[ONE]
        assert (state == "stale") == bool(why)
        return why


@pytest.fixture
def outside(here, monkeypatch):
    return Outside(here, monkeypatch)


def read_corrections(stage):
    from cellkit.cells.dataset import CellDataset
    from cellkit.labelling.annotate import choose_labels

    with pytest.raises(UserError, match="mine"):  # there is no image that they could belong to
        choose_labels(CellDataset([], [], (), Path(), []), [], {}, "mine")


def read_weights(stage):
    from cellkit.fetch.find import find_weights

    find_weights("w.pt")
    find_weights("starter")


def read_data(stage):
    from cellkit.config.places import data_path

    settings = {"data": "data", "convert.source": "microscope"}
    stage.note_reading(data_path(load_config("configs/demo.yaml", settings).convert), "data", by="data")


@pytest.mark.parametrize(
    ("read", "name", "told"),
    [
        (read_corrections, "mine/a.tif", "input corrections {} ({}/mine: a.tif {})"),
        (read_corrections, "mine/later.tif", "input corrections {} ({}/mine: later.tif {})"),
        (read_weights, "w.pt", "input weights w.pt {} ({}/w.pt)"),
        (read_weights, "w.json", "input card of w.pt {} ({}/w.json)"),
        (read_data, "data/A/a.tif", "input data {} ({}/data: A/a.tif {}, truth/a.tif {})"),
        (read_data, "data/A/b.ome.zarr/.zattrs", "A/b.ome.zarr/.zattrs {}"),
        (read_data, "data/A/b.ome.zarr/0/.zarray", "A/b.ome.zarr/0/.zarray {}"),
        (read_data, "data/A/b.ome.zarr/zarr.json", "A/b.ome.zarr/zarr.json {}"),
        (read_data, "data/A/later.tif", "A/later.tif {}"),
        (read_data, "data/truth", "truth/a.tif {}"),
    ],
)
def test_whatever_a_stage_reads_makes_it_stale_and_the_file_is_named(outside, here, read, name, told):
    settings = {"data": "data", "convert.source": "microscope"} if read is read_data else {}
    assert outside.stage(read, **settings) == ""
    path = Path(name)
    words = ["changed" if path.exists() else "is new"]
    if path.is_symlink():
        path.unlink()
        words = ["is gone"]
    else:
        path.write_text("other")
    shown = told.replace("{}/", f"{here}/").replace("input corrections {}", "input corrections changed")
    shown = shown.replace("input data {}", "input data changed").replace("{}", words[0])
    assert shown in outside.why(**settings)
    if words == ["changed"]:
        path.unlink()
        gone = {"w.pt": "input weights w.pt: no weights 'w.pt'", "w.json": "is missing"}.get(name, "is gone")
        assert gone in outside.why(**settings)


def test_another_data_folder_or_other_weights_of_the_same_name_make_stale(outside, here, monkeypatch):
    shutil.copytree("data", "other", symlinks=True)
    monkeypatch.setenv("CELLKIT_DATA", "data")
    read = lambda stage: stage.note_reading(Path("data"), "data", by="data")  # noqa: E731
    assert outside.stage(read) == ""
    monkeypatch.setenv("CELLKIT_DATA", "other")
    assert outside.why() == ""  # the same files elsewhere
    Path("other/A/a.tif").write_text("another")
    assert f"input data changed ({here}/other, was {here}/data: A/a.tif changed" in outside.why()
    assert "input data changed" in outside.why(**{"data": "other", "convert.source": "folder"})
    monkeypatch.setenv("CELLKIT_DATA", "nowhere")
    assert outside.why() == "input data: CELLKIT_DATA is 'nowhere', no such folder"
    monkeypatch.delenv("CELLKIT_DATA")
    assert outside.why() == ""  # nothing names another one

    from cellkit.fetch.find import find_weights

    monkeypatch.setattr(
        "cellkit.fetch.fetch.fetched_weights", lambda name: Path(os.environ["CELLKIT_WEIGHTS"]) / "w.pt"
    )
    monkeypatch.setenv("CELLKIT_WEIGHTS", str(here))
    assert outside.stage(lambda stage: find_weights("cyto3")) == ""
    monkeypatch.setenv("CELLKIT_WEIGHTS", str(here / "mine"))
    Path("mine/w.pt").write_text("other weights")
    assert f"input weights cyto3 changed ({here}/mine/w.pt, was {here}/w.pt)" in outside.why()


def test_a_file_changed_while_the_stage_runs_is_told_at_once_and_makes_it_stale(outside, capsys):
    def read(stage):
        read_corrections(stage)
        Path("mine/a.tif").write_text("changed meanwhile")

    assert "a.tif changed" in outside.stage(read)
    assert f"input corrections changed while {ONE} ran" in capsys.readouterr().err


def test_relative_paths_of_a_run_count_from_where_it_began(done, here):
    """The folder named by a relative path is the one the run read, from wherever the run is checked."""
    code = ["from cellkit.under_way import note_reading", "note_reading('mine')", "stage.done()"]
    Path("mine").mkdir()
    Path("mine/a").write_text("1")
    write_notebook(here / "notebooks", ONE, code)
    assert go(only="1") == 0
    books, run = Path("notebooks").absolute(), Path("runs/demo").absolute()
    os.chdir("/")
    assert check(run, notebooks=books)[0].state == "fresh"
    (here / "mine/a").write_text("2")
    assert "a changed" in check(run, notebooks=books)[0].why


def test_files_of_the_run_folder_that_nobody_lists_are_inputs_too(done):
    """As a report reads them: settings of earlier stages, a file beside an output, one that is not there yet."""
    from cellkit.under_way import note_reading

    def read():
        stage = Run("runs/demo").start(THREE, {"seed": 1})
        for name in ("images/a.png", "beside.txt", "later.txt", "own.txt"):
            note_reading(Path("runs/demo") / name)
        stage.note_settings()
        stage.done(own=stage.path("own.txt")) if stage.path("own.txt").write_text("own") else None
        return stage

    Path("runs/demo/beside.txt").write_text("1")
    stage = read()
    inputs = stage._entry["inputs"]
    assert sorted(inputs) == ["beside.txt", "images", "later.txt", "settings"] and inputs["later.txt"]["sha256"] is None
    note_reading(Path("runs/demo/images"))  # the stage is done: nothing to note it for
    write_notebook(done / "notebooks", THREE, ["stage.done()"])
    reason = lambda: dict(states())[THREE][1]  # noqa: E731
    assert "input" not in reason()
    Path("runs/demo/later.txt").write_text("now")
    Path("runs/demo/beside.txt").write_text("2")
    assert "input beside.txt changed (beside.txt)" in reason() and "input later.txt changed" in reason()
    manifest = read_manifest(Path("runs/demo"))
    manifest["stages"][ONE]["config"]["seed"] = 7
    Path("runs/demo/manifest.json").write_text(json.dumps(manifest))
    assert "input settings changed (manifest.json)" in reason()


def test_the_manifest_says_what_networks_computed_in_and_what_a_stage_took(tmp_path):
    pytest.importorskip("torch")
    for precision in ("float32", "bfloat16"):
        Run(tmp_path / "run").start("own", {"precision": precision}).done()
        entry = read_manifest(tmp_path / "run")["stages"]["own"]
        assert entry["arithmetic"]["number_type"] == precision
        assert entry["processor_s"] > 0 and entry["peak_bytes"] > 10**7


def test_other_versions_are_noted_and_make_nothing_stale(done, said, monkeypatch):
    manifest = read_manifest(Path("runs/demo"))
    manifest["stages"][ONE]["versions"] |= {"torch": "1.0", "gone": "2.0"}
    Path("runs/demo/manifest.json").write_text(json.dumps(manifest))
    real = read_notebooks
    monkeypatch.setattr(cellkit.run.stale, "read_notebooks", lambda folder=None: real("notebooks"))
    code, out, _ = said("check", "runs/demo", "--json")
    one, two = json.loads(out)["stages"]
    assert code == 0 and one["state"] == "fresh" and one["note"].startswith("torch 1.0, now ") and two["note"] == ""
    assert one["note"].endswith("gone 2.0, now missing")
    assert f"         made with {one['note']}" in said("check", "runs/demo")[1]


def test_an_output_more_makes_stale_what_reads_all_of_its_kind(here, monkeypatch):
    real = cellkit.run.notebooks.read_notebooks  # a stage started by hand looks beside the package first
    monkeypatch.setattr("cellkit.run.notebooks.read_notebooks", lambda folder=None: real(folder or "notebooks"))

    def convert(**names):
        stage = Run("runs/demo").start(ONE, load_config("configs/demo.yaml").convert)
        for name in names.values():
            stage.path(name).write_text("same")
        stage.done(**{key: stage.path(name) for key, name in names.items()})

    for name in (ONE, TWO):
        write_notebook(here / "notebooks", name, ["stage.done()"])
    convert(records="r")
    run = Run("runs/demo")
    stage = run.start(TWO, load_config("configs/demo.yaml").label)
    assert run.find_all("truth*") == {}
    assert list(run.find_all("rec*")) == ["records"]
    stage.done(nothing=None)
    assert run.stages()[TWO]["outputs"] == {}
    assert states(config_path="configs/demo.yaml")[TWO] == ("fresh", "")
    convert(records="r", truth="t")
    assert reasons("stale", config_path="configs/demo.yaml") == "it read no truth*, now truth"


def test_the_keys_of_a_notebook_are_told_without_running_it(here):
    cells = [
        "files = {'summary': 1}\nfor split in 'ab':\n    files[f'coco_{split}'] = split",
        "%matplotlib inline\nstage.done(x=1)",
        "stage.done(labels=1, **files)",
        "run = Run(run_dir)\nimages = CellDataset.of_run(run)\nrun.find('truth')",
    ]
    write_notebook(here / "notebooks", ONE, cells)
    (book,) = read_notebooks("notebooks")
    assert book.keys == ("labels", "summary", "coco_*")
    assert book.reads == ("records", "images", "truth")


def test_a_damaged_manifest_is_no_traceback(done):
    path = Path("runs/demo/manifest.json")
    whole = read_manifest(path.parent)
    for stage, entry in whole["stages"].items():
        for key in entry:
            less = {**whole, "stages": {**whole["stages"], stage: {k: v for k, v in entry.items() if k != key}}}
            path.write_text(json.dumps(less))
            assert [one.name for one in check("runs/demo")][:3] == [ONE, TWO, THREE]
        for key, value in entry["inputs"].items():
            if "settings_before" in value:
                bad = {**entry, "inputs": {**entry["inputs"], key: {**value, "settings_before": None}}}
                path.write_text(json.dumps({**whole, "stages": {**whole["stages"], stage: bad}}))
                with pytest.raises(UserError, match="is damaged"):
                    check("runs/demo")


def test_unchanged_outputs_of_a_repeated_stage_let_the_next_be_skipped(done, capsys):
    write_notebook(done / "notebooks", ONE, [*CONVERT[:-1], "1 + 1", CONVERT[-1]])
    assert go() == 0
    err = capsys.readouterr().err
    assert f"{ONE}  because the notebook changed" in err
    assert f"skip {TWO} (unchanged)" in err


def test_what_was_changed_by_hand_is_kept_aside_when_its_stage_is_repeated(done, capsys):
    Path("runs/demo/labels/a.tif").write_text("corrected by hand")
    assert go() == 0
    assert Path("runs/demo/labels/a.tif").read_text() == "id,seed\na,1\n" * 2
    assert Path("runs/demo/set_aside/1/labels/a.tif").read_text() == "corrected by hand"
    assert "labels was changed by hand: kept as runs/demo/set_aside/1/labels" in capsys.readouterr().err


def test_from_and_only_repeat_what_they_name_and_keep_the_rest(done, capsys):
    Path("configs/demo.yaml").write_text("seed: 2\n")
    first = read_manifest(Path("runs/demo"))["stages"]
    assert go(only="02", overrides={"label.min_area_px": 3}) == 0
    second = read_manifest(Path("runs/demo"))["stages"]
    assert second[ONE] == first[ONE]
    assert second[TWO]["config"]["min_area_px"] == 3
    assert f"keep {ONE}, although it is stale: convert.seed 1 -> 2" in capsys.readouterr().err
    assert go(from_=ONE) == 0
    assert tree()["labels/a.tif"] == b"id,seed\na,2\n" * 2


def test_from_and_only_need_what_comes_before(here):
    write_notebook(here / "notebooks", ONE, CONVERT)
    write_notebook(here / "notebooks", TWO, LABEL)
    with pytest.raises(UserError, match=f"runs/demo has no finished {ONE} before {TWO}"):
        go(only="2")
    with pytest.raises(UserError, match="runs no notebook called '7'"):
        go(from_="7")
    with pytest.raises(UserError, match="exclude each other"):
        go(from_="1", only="1")


def test_fresh_deletes_what_the_run_made_and_nothing_else(done):
    Path("runs/demo/images/a.png").write_text("painted over")
    Path("runs/demo/own notes.txt").write_text("mine")
    write_notebook(done / "notebooks", ONE, ["stage.done(x=stage.path('x'))"])
    assert go(fresh=True) == 2
    assert tree() == {"own notes.txt": b"mine", "set_aside/1/images/a.png": b"painted over"}
    assert read_manifest(Path("runs/demo"))["stages"] == {}
    assert sorted(path.name for path in Path("runs/demo/notebooks").iterdir()) == [f"{ONE}.unfinished.ipynb"]


def test_executed_notebooks_that_a_person_wrote_into_are_kept(done, capsys):
    folder, aside = Path("runs/demo/notebooks"), Path("runs/demo/set_aside/1/notebooks")
    (folder / "my analysis.ipynb").write_text("mine")
    (folder / f"{TWO}.ipynb").write_text("annotated")
    assert go(from_="2") == 0 and (aside / f"{TWO}.ipynb").read_text() == "annotated"
    assert f"{TWO}.ipynb was changed by hand: kept as" in capsys.readouterr().err
    assert go(from_="2") == 0 and "by hand" not in capsys.readouterr().err, "as the runner left it"
    write_notebook(done / "notebooks", TWO, ["1 / 0"])
    assert go() == 1
    partial = folder / f"{TWO}.unfinished.ipynb"
    partial.write_text("why it failed")
    assert go() == 1 and (aside / partial.name).read_text() == "why it failed"
    assert go() == 1 and len(list(aside.parents[1].rglob("*.ipynb"))) == 2
    (folder / f"{ONE}.ipynb").write_text("annotated too")
    assert go(fresh=True, until="1") == 0
    assert sorted(path.name for path in folder.iterdir()) == [f"{ONE}.ipynb", "my analysis.ipynb"]
    assert (aside / f"{ONE}.ipynb").read_text() == "annotated too"
