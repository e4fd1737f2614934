"""A forecast that cannot fit is refused, with settings under which it does."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from cellkit.cells.records import ImageRecord
from cellkit.config.reading import load_config
from cellkit.config.sections import STAGES
from cellkit.errors import UserError
from cellkit.forecast import fits, smaller
from cellkit.forecast.speed import Speed
from cellkit.forecast.stages import Plan
from cellkit.forecast.words import whole
from cellkit.models.shared.cost import Cost
from cellkit.room import Disk, Memory

COST = Cost(prepare_s=1, step_s=0.5, find_s=2, search_s=5, step_bytes=1e8, weights_bytes=10**7, trained_bytes=10**7)
SPEED = Speed(COST, start_s=4, start_bytes=500_000_000)
SPEEDS = dict.fromkeys(("label", "finetune", "maskrcnn", "threshold"), SPEED)
GB = 10**9


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """The plan of ten images of a megapixel."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "run.yaml").write_text(
        "classes: [a]\nconvert: {source: folder}\nfinetune: {steps: 100, batch_size: 32}\nmaskrcnn: {steps: 100, batch_size: 16}"
    )
    splits = ["train"] * 6 + ["val"] * 2 + ["test"] * 2
    images = [ImageRecord(str(k), f"{k}.png", 1000, 1000, split=split, cell_type="a") for k, split in enumerate(splits)]
    return replace(Plan.of(load_config(tmp_path / "run.yaml"), STAGES, images, timed=False), speeds=SPEEDS)


def refused(found, plan, memory):
    with pytest.raises(UserError) as error:
        fits.check_memory_of(found, plan, memory)
    return error.value


def applied(plan, remedy):
    """Return the forecast under the settings that a remedy names."""
    named = dict(re.findall(r"([a-z_]+\.[a-z_]+|workers): ([\d.]+)", remedy))
    return whole(plan.under({key: float(text) if "." in text else int(text) for key, text in named.items()}).forecast())


@pytest.mark.parametrize(("free", "key"), [(3.4, "finetune.batch_size: 16"), (1.3, "batch_size: ")])
def test_memory_that_is_too_small_is_refused_with_steps_that_fit(plan, free, key):
    error = refused(plan.forecast(), plan, Memory(16 * GB, int(free * GB)))
    assert re.match(r"03_finetune_cellpose takes about 4.\d GB of memory, \d.\d GB are free", error.problem)
    assert key in error.remedy and "--force begins all the same" in error.remedy
    assert applied(plan, error.remedy).peak_bytes <= free * GB


def test_all_that_a_run_is_refused_for_is_said_at_once(plan, tmp_path, monkeypatch):
    found, none = plan.forecast(), [Disk(what, tmp_path, 0, 10**6) for what in ("the run folder", "tmp", "the cache")]
    monkeypatch.setattr(fits, "places", lambda folder: list(none))
    refused, said = fits.reasons_against(found, plan, tmp_path, Memory(16 * GB, 1 * GB))
    assert len(refused) == 2 and "of memory, 1.0 GB are free" in refused[0].problem and not said
    assert "the run folder" in refused[1].problem
    refused, said = fits.reasons_against(found, plan, tmp_path, Memory(16 * GB, 1 * GB, swap=16 * GB))
    assert len(refused) == 1 and "would be swapped" in said[0]
    assert fits.reasons_against({}, plan, tmp_path) == ([], [])


def test_memory_that_holds_nothing_is_told_so(plan):
    error = refused(plan.forecast(), plan, Memory(GB, GB // 2, limited_by="the control group"))
    assert error.remedy.startswith("no smaller steps, images or fewer of them make it fit")
    assert error.problem.endswith("within the control group")


def test_memory_of_a_gpu_that_is_too_small_is_refused_with_steps_that_fit(plan):
    on_gpu = replace(SPEED, cost=replace(COST, device="cuda", parameters=3 * 10**8, trained=10**8))
    large = replace(plan, speeds=SPEEDS | {"finetune": on_gpu})
    with pytest.raises(
        UserError, match="03_finetune_cellpose takes about 5.6 GB of the memory of the GPU, 4.0 GB are"
    ) as error:
        fits.check_gpu_of(large.forecast(), large, lambda: 4 * GB)
    assert applied(large, error.value.remedy).gpu_bytes <= 4 * GB
    fits.check_gpu_of(large.forecast(), large, lambda: 8 * GB)
    fits.check_gpu_of(plan.forecast(), plan, lambda: 0)


def test_what_needs_swap_is_warned_of_and_not_refused(plan):
    (said,) = fits.check_memory_of(plan.forecast(), plan, Memory(16 * GB, 2 * GB, 8 * GB))
    assert "the rest would be swapped" in said
    assert fits.check_memory_of(plan.forecast(), plan, Memory(16 * GB, 8 * GB)) == []


def test_workers_are_counted_and_fewer_fit(plan):
    many = plan.under({"workers": 16})
    held = many.forecast()["01_convert"].peak_bytes
    assert held > plan.forecast()["01_convert"].peak_bytes + 16 * 200e6
    error = refused(
        {"01_convert": many.forecast()["01_convert"]},
        replace(many, wanted={"01_convert": "convert"}),
        Memory(GB * 9, GB * 3),
    )
    assert "it fits with workers: 8" in error.remedy


def test_workers_that_a_section_names_are_lessened_there(plan):
    own = plan.under({"label.workers": 8})
    assert list(smaller._fewer_workers(own)) == [{"label.workers": count} for count in (4, 2, 1)]
    assert list(smaller._fewer_workers(plan)) == []


def test_processes_that_find_cells_after_a_training_hold_a_network_each(plan):
    one, many = (plan.under({"maskrcnn.workers": count}).forecast()["05_train_maskrcnn"].peak_bytes for count in (1, 8))
    assert many > one + 4 * SPEED.start_bytes


def test_of_a_frozen_encoder_no_state_is_written(plan):
    half = replace(SPEED, cost=replace(COST, trained_bytes=5 * 10**6))
    few = replace(plan, speeds=SPEEDS | {"maskrcnn": half}).forecast()["05_train_maskrcnn"]
    every = plan.forecast()["05_train_maskrcnn"]
    moments = 2 + bool(plan.cfg.maskrcnn.average_steps)
    assert every.kept_bytes - few.kept_bytes == pytest.approx(5e6 * (1 + moments), abs=2)
    assert every.disk_bytes - few.disk_bytes == pytest.approx(5e6 * (2 + moments), abs=2), "the best so far likewise"


def test_an_image_too_large_is_left_out_or_made_smaller(plan):
    large = replace(plan.records[0], height_px=12_000, width_px=12_000)
    one = replace(plan, records=[large, *plan.records[1:]], wanted={"02_label_with_cellpose": "label"})
    error = refused(one.forecast(), one, Memory(GB * 8, GB * 6))
    assert "convert.scale: 0.5" in error.remedy and applied(one, error.remedy).peak_bytes < 6 * GB
    error = refused(one.forecast(), one, Memory(GB * 8, int(GB * 0.8)))
    assert "convert.max_plane_px: 1000000" in error.remedy and applied(one, error.remedy).peak_bytes < 0.8 * GB


@pytest.mark.parametrize(
    ("free_mb", "words"), [(215, "map_cache_gb: 0"), (30, "no fewer or smaller images make it fit")]
)
def test_a_disk_that_is_too_small_is_refused(plan, monkeypatch, free_mb, words):
    found = plan.forecast()
    need = whole(found).disk_bytes / 1e6
    small = [
        Disk("the run folder", Path("/"), 1, free_mb * 10**6),
        Disk("tmp", Path("/"), 2, GB),
        Disk("cache", Path("/"), 3, 0),
    ]
    monkeypatch.setattr(fits, "places", lambda folder: small)
    with pytest.raises(UserError, match=f"the run folder .* {free_mb} MB are free") as error:
        fits.check_disk_of(found, plan, Path("/"))
    assert need > free_mb - 50 and words in error.value.remedy and "--run" in error.value.remedy
    if free_mb < 50:
        with pytest.raises(UserError, match="^03_finetune_cellpose is not begun: the run folder"):
            fits.check_stage_disk("03_finetune_cellpose", found["03_finetune_cellpose"], Path("/"))
