"""A recipe: one notebook file and a section of the configuration, found, run before 06, and scored like any other model."""

import json
import re
import shutil
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from cellkit.config.reading import load_config
from cellkit.config.recipes import OUTPUTS
from cellkit.config.sections import Config
from cellkit.errors import UserError
from cellkit.manifest import read_manifest
from cellkit.run.notebooks import Notebook, notebooks_of, ordered, read_notebooks
from cellkit.run.runner import run_notebooks
from cellkit.run.stale import check

REPO = Path(__file__).parents[2]
ONE, SIX = "01_convert", "06_evaluate_map_iou"
PARAMETERS = 'config = "configs/demo.yaml"\nrun_dir = "runs/demo"\noverrides = {}'
START = """
from cellkit import Run, load_config, read_coco, write_records, write_results
from cellkit.formats.coco import write_coco
run = Run(run_dir)
cfg = load_config(config, overrides).section("{name}")
stage = run.start("{name}", cfg)
"""
DRAW = """
import numpy as np
from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from PIL import Image
labels = np.zeros((20, 30), int)
labels[2:8, 2:12], labels[12:14, 20:22] = 1, 2
cells, names, splits = Instances.from_labels(labels, [1, 1]), "abcd", ["val", "val", "test", "test"]
records = [ImageRecord(n, f"images/{n}.png", 20, 30, cell_type="cell", split=s) for n, s in zip(names, splits, strict=True)]
for record in records:
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(stage.path(record.path))
outputs = {"records": write_records(stage.path("records.csv"), records), "images": stage.path("images")}
for split, first in (("val", 0), ("test", 2)):
    part, path = records[first:first + 2], stage.path(f"coco/{split}.json")
    outputs[f"coco_{split}"] = write_coco(path, part, [cells] * 2, cfg.classes, [first + 1, first + 2])
outputs["predictions_threshold"] = write_results(stage.path("predictions/threshold.json"), [1, 2, 3, 4], [cells[1:]] * 4)
stage.done(**outputs)
"""
LARGE = """
truth = [read_coco(run.find(f"coco_{split}"), run.folder) for split in ("val", "test")]
cells = [x[x.areas_px >= cfg.min_area_px] for data in truth for x in data.instances]
predictions = write_results(stage.path("predictions/large_cells.json"), [k for data in truth for k in data.ids], cells)
stage.done(predictions_large_cells=predictions)
"""
SETTINGS = {"settings": "cellkit.config.sections:CocoConfig"}


def write_notebook(path: Path, *cells: str, **told) -> Path:
    notebook = nbformat.v4.new_notebook(metadata={"cellkit": told} if told else {})
    notebook.cells = [nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})]
    notebook.cells += [nbformat.v4.new_code_cell(text) for text in (START.format(name=path.stem), *cells)]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A notebook that draws four images, and the real 06."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CELLKIT_RUNNER", raising=False)
    Path("configs").mkdir()
    Path("configs/demo.yaml").write_text("evaluate: {bootstrap_samples: 10}\n")
    write_notebook(tmp_path / "notebooks" / f"{ONE}.ipynb", DRAW)
    shutil.copy(REPO / "notebooks" / f"{SIX}.ipynb", tmp_path / "notebooks")
    return tmp_path


def go(**options) -> int:
    return run_notebooks("configs/demo.yaml", "runs/demo", notebooks="notebooks", **options)


def states() -> dict[str, tuple[str, str]]:
    return {s.name: (s.state, s.why) for s in check("runs/demo", "configs/demo.yaml", notebooks="notebooks")}


def scored() -> dict[str, float]:
    told = json.loads(Path("runs/demo/summary.json").read_text())["scores"]
    return {row["model"]: row["score"] for row in told if row["split"] == "test"}


@pytest.mark.slow
def test_a_recipe_is_one_file_that_is_run_before_06_and_scored(here, capsys):
    assert go() == 0 and list(scored()) == ["threshold"]
    recipe = write_notebook(here / "notebooks/recipes/large_cells.ipynb", LARGE, **SETTINGS)
    assert [book.name for book in read_notebooks("notebooks")] == [ONE, "large_cells", SIX]
    assert set(states().values()) == {("fresh", "")}  # no configuration names it yet
    Path("configs/demo.yaml").write_text("evaluate: {bootstrap_samples: 10}\nrecipes: {large_cells: }\n")
    assert states()["large_cells"] == ("missing", "never run")
    assert states()[SIX] == ("stale", "it reads predictions_*, which large_cells is to make, and that is missing")

    Path("configs/demo.yaml").write_text(
        "evaluate: {bootstrap_samples: 10}\nrecipes: {large_cells: {min_area_px: 1}}\n"
    )
    capsys.readouterr()
    assert go() == 0
    assert f"skip {ONE} (unchanged)" in capsys.readouterr().err
    assert scored() == {"threshold": 0.5, "large_cells": 1}, "by 15 px, the default, it would be 0.5 too"
    assert set(pd.read_csv("runs/demo/scores.csv")["model"]) == set(scored())
    assert read_manifest(Path("runs/demo"))["stages"]["large_cells"]["config"]["min_area_px"] == 1
    assert "recipes.large_cells.min_area_px" in Path("runs/demo/report.html").read_text()
    assert set(states().values()) == {("fresh", "")}
    assert go() == 0 and "nothing to do" in capsys.readouterr().err

    Path("configs/demo.yaml").write_text(
        "evaluate: {bootstrap_samples: 10}\nrecipes: {large_cells: {min_area_px: 5}}\n"
    )
    assert states()["large_cells"] == ("stale", "recipes.large_cells.min_area_px 1 -> 5")
    assert states()[SIX][0] == "stale" and "comes from large_cells" in states()[SIX][1]

    recipe.unlink()
    Path("configs/demo.yaml").write_text("evaluate: {bootstrap_samples: 10}\n")
    assert "now predictions_threshold" in states()[SIX][1]
    assert go() == 0 and list(scored()) == ["threshold"]


def test_a_recipes_section_is_checked_by_its_own_settings(here):
    write_notebook(here / "notebooks/recipes/large_cells.ipynb", LARGE, **SETTINGS)
    load = lambda text: (Path("c.yaml").write_text(text), load_config("c.yaml", None, "notebooks"))[1]  # noqa: E731
    cfg = load("seed: 3\nclasses: [a, b]\nrecipes: {large_cells: {min_area_px: 4}}\n")
    own = cfg.section("large_cells")
    assert (own.min_area_px, own.seed, own.classes) == (4, 3, ("a", "b")) and own == cfg.recipes.large_cells
    assert load("recipes: {large_cells: {min_area_px: 4}}") == load("recipes: {large_cells: {min_area_px: 4}}")
    other = load("classes: [a]\nrecipes: {}\n")
    assert other.recipes.large_cells is None and other.section("recipes.large_cells").classes == ("a",)
    for text, told in {
        "recipes: {large_cells: {min_area: 4}}": r"unknown key 'recipes.large_cells.min_area' \(did you mean 'min_area_px'",
        "recipes: {large_cells: {min_area_px: -1}}": "recipes.large_cells.min_area_px is -1 .*, wanted a whole number >= 0",
        "recipes: {small_cells: {}}": "unknown key 'recipes.small_cells' .*large_cells",
        "classes: [1]\n": "^c.yaml: classes",
    }.items():
        with pytest.raises(UserError, match=told):
            load(text)
    with pytest.raises(
        UserError, match="unknown key 'recipes.large_cells'.*\nknown keys of recipes: (?!.*large_cells)"
    ):
        (Path("c.yaml").write_text("recipes: {large_cells: {}}"), load_config("c.yaml"))


@pytest.mark.parametrize(
    ("name", "told", "problem"),
    [
        ("Large cells", {}, "is called 'Large cells'\nsmall letters"),
        (
            "finetune",
            {},
            "is called 'finetune', as a section of the configuration or a folder of the run is\ngive it another",
        ),
        ("images", {}, "is called 'images', as a section"),
        ("x", {"settings": "cellkit.config:Nothing"}, "'cellkit.config:Nothing', which is not there"),
        ("x", {"settings": "cellkit.errors:UserError"}, "no class of pydantic fields"),
        ("x", {"backend": "nothing"}, "'cellkit.models.nothing:TrainSettings', which is not there"),
    ],
)
def test_recipes_without_a_fit_name_or_settings_are_refused(here, name, told, problem):
    write_notebook(here / f"notebooks/recipes/{name}.ipynb", LARGE, **told)
    with pytest.raises(UserError, match=problem):
        load_config("configs/demo.yaml", None, "notebooks")


def test_a_number_orders_recipes_and_is_no_part_of_their_name(here):
    for number in (12, 11):
        write_notebook(here / f"notebooks/recipes/{number}_cells_{number}.ipynb", LARGE, **SETTINGS)
    Path("c.yaml").write_text("recipes: {cells_12: {min_area_px: 4}}\n")
    cfg = load_config("c.yaml", None, "notebooks")
    assert cfg.section("12_cells_12").min_area_px == 4 and cfg.section("cells_11").min_area_px == 15
    assert [book.name for book in read_notebooks("notebooks")] == [ONE, "11_cells_11", "12_cells_12", SIX]
    assert [book.name for book in notebooks_of(cfg, "notebooks")] == [ONE, "12_cells_12", SIX]
    with pytest.raises(
        UserError, match="runs no notebook called '11'.*\n.*a recipe is run where the configuration names"
    ):
        run_notebooks("c.yaml", "runs/c", only="11", notebooks="notebooks")
    write_notebook(here / "notebooks/recipes/cells_11.ipynb", LARGE, **SETTINGS)
    with pytest.raises(UserError, match="is called 'cells_11', as .*11_cells_11.ipynb' is"):
        load_config("c.yaml", None, "notebooks")


def test_what_a_configuration_leaves_out_is_no_part_of_a_run():
    sections = [book.section for book in notebooks_of(Config(leave_out=["maskrcnn", "finetune"]))]
    assert sections == ["convert", "label", "coco", "evaluate"]


def test_no_recipe_takes_the_name_of_a_folder_that_the_six_write():
    written = "\n".join(
        path.read_text() for place in ("notebooks/*.ipynb", "cellkit/**/*.py") for path in REPO.glob(place)
    )
    folders = set(re.findall(r"stage\.path\(f?\\?\"([a-z_]+)[/\\\"]", written))
    assert {"coco", "images", "labels", "predictions"} <= folders <= OUTPUTS


def book(name: str, keys: str = "", reads: str = "") -> Notebook:
    return Notebook(name, Path(name), "convert", None, "", tuple(keys.split()), tuple(reads.split()), {})


def test_notebooks_are_ordered_by_what_they_read_and_write():
    six = [book("01", "records"), book("03", "predictions_*_tuned", "records"), book("06", "scores", "predictions_*")]
    names = lambda *more: [one.name for one in ordered([*six, *more])]  # noqa: E731
    assert names() == ["01", "03", "06"]
    assert names(book("z", "predictions_z", "records")) == ["01", "03", "z", "06"]
    assert names(book("b", "predictions_b", "c"), book("a", "c")) == ["01", "03", "a", "b", "06"]
    assert names(book("after", "table", "scores")) == ["01", "03", "06", "after"]
    assert ordered(six)[2].before == ("01", "03")
    with pytest.raises(UserError, match="read from one another: 06, loop\nlet a recipe"):
        names(book("loop", "predictions_loop", "scores"))
