"""A run made cell by cell in Jupyter: stages started by hand, cells that are run again, notebooks left open."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from run_cases import CONVERT, LABEL, ONE, TWO, go, here, states, tree, write_notebook  # noqa: F401

import cellkit.run.notebooks
from cellkit.config.reading import load_config
from cellkit.errors import Quarantined, UserError
from cellkit.manifest import clear_place, read_manifest, release
from cellkit.run.folder import Run, Stage

REPO = Path(__file__).parents[2]
THREE = "03_finetune_cellpose"
SECTIONS = {ONE: "convert", TWO: "label", THREE: "finetune"}


@pytest.fixture(autouse=True)
def books(here, monkeypatch):
    """Let a stage started by hand know the notebooks of the current folder: one after the other."""
    real = cellkit.run.notebooks.read_notebooks
    monkeypatch.setattr("cellkit.run.notebooks.read_notebooks", lambda folder=None: real(folder or "notebooks"))
    for name, cells in ((ONE, CONVERT), (TWO, LABEL), (THREE, ["stage.done()"])):
        write_notebook(here / "notebooks", name, cells)
    yield
    release(Path("runs/demo"))


def start(name: str) -> tuple[Run, Stage]:
    run = Run("runs/demo")
    return run, run.start(name, load_config("configs/demo.yaml").section(SECTIONS.get(name, "evaluate")))


def convert(text: str = "a") -> Stage:
    _, stage = start(ONE)
    stage.path("records.csv").write_text(text)
    stage.path("images/a.png").write_bytes(b"pixels")
    stage.path(f"{ONE}/weights.pt").write_text("trained")
    stage.path("cards/a.json").write_text("{}")
    stage.done(records=stage.path("records.csv"), images=stage.root / "images")
    return stage


def label(text: str = "labels") -> Stage:
    run, stage = start(TWO)
    run.find("records")
    stage.path("labels.csv").write_text(text)
    stage.done(labels=stage.path("labels.csv"))
    return stage


def test_the_last_cell_run_again_keeps_the_files_that_it_does_not_name():
    stage = convert()
    before, entry = tree(), read_manifest(Path("runs/demo"))["stages"][ONE]
    for _ in range(2):
        stage.done(records=stage.path("records.csv"), images=stage.root / "images")
    again = read_manifest(Path("runs/demo"))["stages"][ONE]
    assert tree() == before and f"{ONE}/weights.pt" in before
    assert (again["outputs"], again["also"]) == (entry["outputs"], entry["also"])
    stage.path(f"{ONE}/weights.pt").write_text("trained again")  # a cell before it, run again
    stage.done(records=stage.path("records.csv"), images=stage.root / "images")
    assert tree() == before | {f"{ONE}/weights.pt": b"trained again"}
    assert states(config_path="configs/demo.yaml")[ONE] == ("fresh", "")
    Path("runs/demo/cards/a.json").unlink()
    stage.done(records=stage.path("records.csv"), images=stage.root / "images")
    assert "file cards/a.json is missing" in states(config_path="configs/demo.yaml")[ONE][1]


def test_the_last_cell_of_a_notebook_whose_stage_was_run_elsewhere_since_is_refused():
    old = convert()
    convert("b")
    before = tree()
    with pytest.raises(UserError, match=f"{ONE} was run again elsewhere since it was done here\n.*from its first cell"):
        old.done(records=old.path("records.csv"), images=old.root / "images")
    assert tree() == before


@pytest.mark.parametrize("run_dir", ["mine", "", "configs"])
def test_a_folder_of_other_things_is_made_no_run_folder(here, run_dir):
    (here / "mine/images").mkdir(parents=True)
    (here / "mine/images/my.png").write_bytes(b"mine")
    before = sorted(here.rglob("*"))
    with pytest.raises(UserError, match="is no run folder and holds .*\nname a new folder: --run, or run_dir in a"):
        Run(run_dir).start(ONE, {})
    assert sorted(here.rglob("*")) == before


def test_what_comes_from_an_earlier_state_of_the_run_is_said_to_be_out_of_date(caplog):
    convert()
    label()
    run, stage = start(THREE)
    run.find("labels")
    assert not caplog.records
    stage.done()
    convert("b")
    run, stage = start(THREE)
    run.find("labels")
    run.find("labels")
    why = f"it read another records than {ONE} has written since"
    (said,) = [one.getMessage() for one in caplog.records]
    assert said.startswith(
        f"'labels' is of {TWO}, which is out of date: {why}; repeat that first (cellkit run CONFIG --run "
    )
    stage.done(mine=stage.path("mine")) if stage.path("mine").write_text("x") else None
    caplog.clear()
    _, stage = start("04_own")
    stage.run.find("mine")
    assert f"'mine' is of {THREE}, which is out of date: it read labels of {TWO};" in caplog.text
    stage.done()
    caplog.clear()
    label("others")
    run, stage = start(THREE)
    run.find("labels")
    assert not caplog.records
    stage.done()


def test_a_notebook_that_is_open_and_unfinished_is_named():
    convert()
    code = f"from cellkit.run.folder import Run; Run('runs/demo').start('{TWO}', {{}}); print(1, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1) as process:
        process.stdout.readline()
        with pytest.raises(
            UserError, match=f"{TWO} is open in Jupyter and not finished .process {process.pid} on .*\nrun it"
        ):
            start(THREE)
        state, why = states(config_path="configs/demo.yaml")[TWO]
        assert state == "missing" and why.startswith("running now (process ")
        process.communicate(b"\n")


def test_an_attempt_that_is_running_now_has_not_failed():
    convert()
    start(ONE)
    state, why = states(config_path="configs/demo.yaml")[ONE]
    assert state == "fresh" and why.startswith("a later attempt is running now (process ")


def test_items_quarantined_by_a_cell_that_is_run_again_are_listed_once():
    _, stage = start(ONE)
    for _ in range(2):
        stage.quarantine(Quarantined(name, "truncated") for name in ("a.tif", "b.tif"))
    stage.done()
    listed = json.loads(Path("runs/demo/manifest.json").read_text())["stages"][ONE]["quarantined"]
    assert [item["item"] for item in listed] == ["a.tif", "b.tif"]


def test_label_images_that_were_changed_in_the_run_are_refused_and_kept_with_the_way_to_use_them(caplog):
    books = {book.section: book for book in cellkit.run.notebooks.read_notebooks(REPO / "notebooks")}
    assert all("label_images" in books[section].reads for section in ("finetune", "coco"))
    path = Path("runs/demo/labels/a.tif")
    path.parent.mkdir(parents=True)
    path.write_text("corrected")
    clear_place(Path("runs/demo"), "labels", {"labels": "as 02 left them"})
    aside = "runs/demo/set_aside/1/labels"
    assert Path(aside, "a.tif").read_text() == "corrected"
    assert f"kept as {aside}; to use what you corrected there: label.use: {aside}" in caplog.text


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            {"label.use": "proposed", "maskrcnn.steps": 9, "finetune.steps": 1},
            "does not read label.use, maskrcnn.steps: give",
        ),
        ({"finetune.steps": 1, "seed": 3}, ""),
    ],
)
def test_overrides_of_other_notebooks_are_named(caplog, overrides, told):
    cfg = load_config("configs/demo.yaml", overrides)
    Run("runs/demo").start(THREE, cfg.finetune).done()
    assert ("does not read" in caplog.text) == bool(told) and told in caplog.text
    Run("runs/demo").start(ONE, cfg.convert).done()
    assert caplog.text.count("does not read") == bool(told), "01 looks at all settings"


def test_a_run_made_by_hand_tells_its_configuration_and_the_overrides_of_each_notebook():
    def begin(name: str, overrides: dict) -> Stage:
        cfg = load_config("configs/demo.yaml", overrides).section(SECTIONS[name])
        stage = Run("runs/demo").start(name, cfg)
        stage.done()
        return stage

    begin(ONE, {"seed": 1, "convert.scale": 0.5})
    assert states() == states(config_path="configs/demo.yaml", overrides={"seed": 1, "convert.scale": 0.5})
    assert states()[ONE] == ("fresh", "")
    begin(TWO, {"label.min_area_px": 7, "seed": 1})
    begin(THREE, {"finetune.steps": 2, "seed": 1})
    asked = read_manifest(Path("runs/demo"))["run"]
    assert asked["config"] == str(Path("configs/demo.yaml").absolute())
    assert asked["overrides"] == {"seed": 1, "convert.scale": 0.5, "label.min_area_px": 7, "finetune.steps": 2}
    assert {state for state, _ in states().values()} == {"fresh"}
    begin(TWO, {"seed": 1})  # its own is taken back
    assert "label.min_area_px" not in read_manifest(Path("runs/demo"))["run"]["overrides"]
    changed = load_config("configs/demo.yaml").label.model_copy(update={"min_area_px": 9})
    Run("runs/demo").start(TWO, changed)
    assert read_manifest(Path("runs/demo"))["run"]["overrides"]["seed"] == 1, "of no file: nothing is noted"
    begin(TWO, {})
    assert "seed" not in read_manifest(Path("runs/demo"))["run"]["overrides"]


def test_a_notebook_by_hand_leaves_what_cellkit_run_was_given_for_all_stages(caplog):
    def asked() -> dict:
        return read_manifest(Path("runs/demo"))["run"]["overrides"]

    def begin(overrides: dict) -> Stage:
        return Run("runs/demo").start(TWO, load_config("configs/demo.yaml", overrides).label)

    given = {"seed": 7, "precision": "float32", "label.min_area_px": 9}
    assert go(overrides=given, only="01") == 0
    stage = begin({})
    assert asked() == given and states()[ONE] == ("fresh", "")
    assert "cellkit run was given precision, seed here, this notebook not: that stays noted" in caplog.text
    stage.done()
    assert asked() == {"seed": 7, "precision": "float32"} and states()[ONE] == ("fresh", "")
    stage = begin({"seed": 3})
    assert asked()["seed"] == 7, "it is not done"
    stage.done()
    assert asked() == {"seed": 3, "precision": "float32"} and "convert.seed 7 -> 3" in states()[ONE][1]
    begin({}).done()
    assert asked() == {"precision": "float32"}, "a seed given by hand is taken back by hand"


def test_relative_paths_of_a_run_made_in_a_notebook_count_from_the_folder_of_the_project(monkeypatch, here):
    monkeypatch.setattr("cellkit.machine.in_jupyter", lambda: True)
    monkeypatch.chdir("notebooks")
    Run("runs/demo").start(ONE, load_config("configs/demo.yaml").convert).done()
    asked = read_manifest(here / "runs/demo")["run"]
    assert asked["folder"] == str(here) and asked["config"] == str(here / "configs/demo.yaml")
    release(here / "runs/demo")
