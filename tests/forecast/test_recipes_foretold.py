"""Recipes, folds and searches are counted as the six notebooks are; what cannot be counted is named."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.config.reading import load_config
from cellkit.config.recipes import named_sections, section_at, section_name
from cellkit.evaluate.halving import rungs_of
from cellkit.files import PACKAGE
from cellkit.forecast import fits, speed, stages
from cellkit.forecast.images import RunImages
from cellkit.forecast.several import Folds, Search, plans_of_trials
from cellkit.forecast.speed import Speed
from cellkit.forecast.stages import FLOOR, Plan, uncounted
from cellkit.forecast.words import whole
from cellkit.models.shared.cost import Cost
from cellkit.room import Memory

COST = Cost(prepare_s=1, step_s=0.5, find_s=2, search_s=5, step_bytes=1e8, weights_bytes=10**7, trained_bytes=10**7)
SPEED = Speed(COST, start_s=4, start_bytes=500_000_000, sample_bytes=800_000_000)
SET = "convert: {source: folder}\nfinetune: {steps: 100, batch_size: 8}\n"
GB = 10**9
CROPS = "cellkit.models.crop_classifier"


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Return the configuration of these lines; earlier runs correct nothing, and every module costs the same."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(stages, "speed_of", lambda name, settings: SPEED)

    def load(text: str, notebooks=None):
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return load_config(path, None, notebooks)

    return load


def images(train: int = 6, val: int = 0, test: int = 2, side: int = 1000) -> list[ImageRecord]:
    splits = ["train"] * train + ["val"] * val + ["test"] * test
    return [ImageRecord(str(k), f"{k}.png", side, side, split=split) for k, split in enumerate(splits)]


def told(cfg, stage, *more):
    return Plan.of(cfg, [stage], images(), *more).forecast()[stage]


def test_a_recipe_is_counted_as_its_backend_says(config):
    cfg = config("convert: {source: folder}\nrecipes: {unet_border: {steps: 100, batch_size: 8, crop_px: 160}}")
    found = told(cfg, "11_unet_border")
    assert found.seconds == pytest.approx(8 + 6 + 0.5 * 8 * 100 + 5 * 6 + 2 * 2)
    assert found.peak_bytes == pytest.approx(0.59e9 + 28 * 6e6 + max(8e8, 3e8 + 6e8))
    assert found.kept_bytes > 4 * 10**7, "the last state, and the checkpoint"


def test_networks_of_parts_are_counted_each(config):
    cfg = config("convert: {source: folder}\nrecipes: {coordinates: {steps: 100, batch_size: 8, parts: 3}}")
    mpx = 224**2 / 1e6
    seconds = 8 + 6 * mpx + 0.5 * 8 * 300 + (5 + 2) * 6 * mpx + 3 * 2 * 2 * mpx
    assert told(cfg, "21_coordinates").seconds == pytest.approx(seconds, abs=0.1)
    cfg = config("convert: {source: folder}\nrecipes: {blood_cells: {steps: 100, batch_size: 8, parts: 2}}")
    assert told(cfg, "31_blood_cells").seconds == pytest.approx(8 + 6 + 0.5 * 8 * 200 + (5 + 2) * 6 + 2 * 2 * 2)


def test_of_cut_outs_cells_are_counted_and_the_models_that_are_asked_again(config):
    recipe = "convert: {source: folder}\nleave_out: [%s]\nrecipes: {crop_classifier: {steps: 100}}"
    cells = [Instances.from_boxes([[10 * k, 0, 9, 9] for k in range(50)], (1000, 1000))] * 8
    alone = told(config(recipe % "finetune, maskrcnn"), "22_crop_classifier", cells)
    mpx = 50 * 112**2 / 1e6
    seconds = 8 + 6 * mpx + 0.5 * 32 * 100 + 5 * 6 * mpx + 2 * 2 * 2 * mpx
    assert alone.seconds == pytest.approx(seconds, abs=0.1)
    cfg = config(recipe % "maskrcnn")
    again = 2 * RunImages(cfg, images(), cells).mpx("finetune", "test")
    assert told(cfg, "22_crop_classifier", cells).seconds == pytest.approx(seconds + again, abs=0.1)


def test_a_recipe_of_which_nothing_says_what_it_costs_is_named(config, tmp_path):
    folder = tmp_path / "notebooks"
    (folder / "recipes").mkdir(parents=True)
    for name in ("01_convert", "recipes/11_unet_border"):
        (folder / f"{name}.ipynb").write_bytes((PACKAGE.parent / f"notebooks/{name}.ipynb").read_bytes())
    book = json.loads((folder / "recipes/11_unet_border.ipynb").read_text())
    for name, about in (("mine", {}), ("other", {"settings": f"{CROPS}:RecipeSettings", "costs": CROPS})):
        (folder / f"recipes/{name}.ipynb").write_text(json.dumps(book | {"metadata": {"cellkit": about}}))
    cfg = config("convert: {source: folder}\nrecipes: {mine: {}, other: {}}", folder)
    assert uncounted(cfg, ["01_convert", "mine", "other"]) == ["mine"]
    plan = Plan.of(cfg, ["01_convert", "mine", "other"], images(), timed=False)
    assert list(plan.forecast()) == ["01_convert", "other"]
    assert section_at(cfg, "recipes.other").costs == CROPS
    assert section_name(cfg, "11_unet_border") is None and "recipes.mine" in named_sections(cfg)
    changed = plan.under({"recipes.other.batch_size": 1, "workers": 2}).cfg
    assert changed.recipes.other.batch_size == 1 and changed.recipes.other.workers == changed.convert.workers == 2


def test_a_module_of_settings_with_a_function_cost_of_its_own_is_not_asked(config, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    text = "from cellkit.models.shared.contract import Schedule\n\n\ndef cost(wage, hours):\n    return wage * hours\n"
    (tmp_path / "own_settings_of_a_recipe.py").write_text(text)
    folder = tmp_path / "notebooks"
    (folder / "recipes").mkdir(parents=True)
    (folder / "01_convert.ipynb").write_bytes((PACKAGE.parent / "notebooks/01_convert.ipynb").read_bytes())
    about = {"settings": "own_settings_of_a_recipe:Schedule"}
    book = {"cells": [], "nbformat": 4, "nbformat_minor": 5}
    (folder / "recipes/mine.ipynb").write_text(json.dumps(book | {"metadata": {"cellkit": about}}))
    cfg = config("convert: {source: folder}\nrecipes: {mine: {}}", folder)
    assert uncounted(cfg, ["01_convert", "mine"]) == ["mine"]
    about |= {"costs": "own_settings_of_a_recipe"}
    (folder / "recipes/mine.ipynb").write_text(json.dumps(book | {"metadata": {"cellkit": about}}))
    with pytest.raises(fits.UserError, match="states no TrainSettings and no BYTES_PER_PX"):
        config("convert: {source: folder}\nrecipes: {mine: {}}", folder)


def test_a_recipe_that_does_not_fit_is_refused_with_steps_that_do(config):
    cfg = config("convert: {source: folder}\nrecipes: {unet_border: {steps: 100, batch_size: 64}}")
    plan = Plan.of(cfg, ["11_unet_border"], images())
    with pytest.raises(fits.UserError, match="11_unet_border takes about 7") as error:
        fits.check_memory_of(plan.forecast(), plan, Memory(16 * GB, 3 * GB))
    assert "it fits with recipes.unet_border.batch_size: 16 (" in error.value.remedy


def test_folds_repeat_the_stages_that_each_has_left(config):
    one = Plan.of(config(SET), ["01_convert", "03_finetune_cellpose"], images())
    each = one.forecast()
    plan = Folds(one, {"fold 1": ["03_finetune_cellpose"], "fold 2": list(each)})
    found = plan.forecast()
    assert list(found) == ["fold 1, 03_finetune_cellpose", *(f"fold 2, {name}" for name in each)]
    all_of_it = whole(found)
    tuned = each["03_finetune_cellpose"]
    assert all_of_it.seconds == pytest.approx(2 * tuned.seconds + each["01_convert"].seconds)
    assert all_of_it.disk_bytes > 2 * tuned.kept_bytes and all_of_it.peak_bytes == tuned.peak_bytes
    with pytest.raises(fits.UserError, match="fold 1, 03_finetune_cellpose takes about") as error:
        fits.check_memory_of(found, plan, Memory(16 * GB, int(1.6 * GB)))
    assert "it fits with finetune.batch_size: 4" in error.value.remedy


def test_a_search_is_counted_by_its_rungs_and_what_a_trial_changes_stays(config):
    cfg = config(SET)
    before = Plan.of(cfg, ["01_convert"], images())
    changes = [{}, {"finetune.batch_size": 16}, {"finetune.learning_rate": 0.1}, {"finetune.learning_rate": 0.2}]
    trials = [(own, before.under(own).cfg) for own in changes]
    plan = Search(before, plans_of_trials(trials, before, "finetune"), "finetune", rungs_of(4))
    found = plan.forecast()
    assert list(found) == ["01_convert", "rung 1 of the search", "rung 2 of the search"]
    rest, step = 2 * 2 + 4 + 5 * 4, 0.5 * 100 * (3 * 8 + 16) / 4  # two images are held back, four teach
    assert found["rung 1 of the search"].seconds == pytest.approx(4 * (rest + step / 2))
    assert found["rung 2 of the search"].seconds == pytest.approx(2 * (rest + step))
    large = 0.59e9 + 28 * 6e6 + 0.3e9 + 14 * 1e8
    assert found["rung 2 of the search"].peak_bytes == pytest.approx(large)
    smaller = plan.under({"finetune.batch_size": 2}).forecast()
    assert smaller["rung 2 of the search"].peak_bytes == pytest.approx(large), "16 is what that trial is about"
    assert smaller["rung 2 of the search"].seconds < found["rung 2 of the search"].seconds
    assert not Search(replace(before, records=[]), [], "finetune", rungs_of(2)).forecast()


@pytest.mark.parametrize("module", ["coordinate", CROPS])
def test_what_recipes_cost_is_timed(module, monkeypatch):
    monkeypatch.setattr(speed, "TIMED_PX", 64)
    small = {"crop_px": 64, "batch_size": 2} | ({"input_px": 32} if "." in module else {})
    found = speed.time_backend(module, json.dumps(small))
    assert min(found.cost.step_s, found.cost.find_s, found.cost.prepare_s) > 0
    assert np.isfinite(found.cost.search_s) and found.cost.weights_bytes > 1e5


def test_the_floor_is_among_the_speeds(config):
    cfg = config("convert: {source: folder}\nrecipes: {unet_border: {steps: 900}}")
    assert set(Plan.of(cfg, ["01_convert", "11_unet_border"], images()).speeds) == {"recipes.unet_border", FLOOR}


@pytest.mark.parametrize("backend", ["maskrcnn_torchvision", "maskrcnn_detectron2"])
def test_detectors_are_counted_at_the_scale_of_their_network(config, backend):
    told = (
        f"convert: {{source: folder}}\nfinetune: {{diameter_px: 60}}\nmaskrcnn: {{backend: {backend}, diameter_px: 60}}"
    )
    run = RunImages(config(told), images(1), [None] * 3)
    assert run.mpx("maskrcnn", "train") == run.mpx("finetune", "train") == pytest.approx(0.25), (
        "cells of 60 px become 30"
    )
    assert run.largest_bytes("maskrcnn", 100) == run.largest_bytes("finetune", 100)
