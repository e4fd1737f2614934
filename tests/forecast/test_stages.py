"""The forecast: what is counted, what is timed and kept, and what is said of it afterwards."""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict, replace
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest

from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.config.reading import load_config
from cellkit.config.sections import STAGES
from cellkit.files import read_json, write_json
from cellkit.forecast import speed, stages
from cellkit.forecast.images import RunImages
from cellkit.forecast.minutes import OTHERS_MPX, one_training_s, training_s
from cellkit.forecast.sample import Sample
from cellkit.forecast.speed import Speed, speed_before, speed_of
from cellkit.forecast.stages import backend_of, forecast_run, remarks
from cellkit.forecast.words import in_words
from cellkit.machine import peak_bytes
from cellkit.manifest import RUNNER_VARIABLE
from cellkit.models.gate import choosers
from cellkit.models.shared.cost import Cost
from cellkit.models.shared.diameter import tried_mpx
from cellkit.run.foretold import Foretold, describe_forecast

COST = Cost(prepare_s=1, step_s=0.5, find_s=2, search_s=5, step_bytes=1e8, searches=2)
SPEED = Speed(COST, start_s=4, start_bytes=500_000_000, sample_bytes=800_000_000)
FINETUNE = "03_finetune_cellpose"


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Return the configuration of these lines; earlier runs correct nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def load(text: str = ""):
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return load_config(path)

    return load


@pytest.fixture
def timed(monkeypatch):
    """What is asked to be timed; every backend costs the same."""
    asked = []
    monkeypatch.setattr(stages, "speed_of", lambda name, settings: asked.append((name, settings)) or SPEED)
    return asked


def images(train: int = 6, val: int = 2, test: int = 2, side: int = 1000) -> list[ImageRecord]:
    splits = ["train"] * train + ["val"] * val + ["test"] * test + [""]
    return [ImageRecord(str(k), f"{k}.png", side, side, split=split) for k, split in enumerate(splits)]


def test_a_training_is_counted(config, timed):
    cfg = config("convert: {source: folder}\nfinetune: {steps: 100, eval_every: 50, batch_size: 10, crop_px: 160}")
    found = forecast_run(cfg, STAGES, images())
    held = (2, 2, 1, 1, 2)  # of the eight labelled images, the two of validation by themselves
    short = sum(1 * (8 - k) + 0.5 * 33 * 10 + 2 * 5 * 6 + 2 * 5 * k for k in held)
    whole = 1 * 8 + 0.5 * 100 * 10 + 2 * 5 * 6
    assert found[FINETUNE].seconds == pytest.approx(2 * 4 + short + whole + 2 * 2 * (2 + OTHERS_MPX))
    assert list(found) == list(STAGES)
    assert found[FINETUNE].peak_bytes == pytest.approx(0.59e9 + 28 * 8e6 + 0.3e9 + 1e8 * 8)
    assert len({json.dumps(settings) for name, settings in timed if name == "cellpose_unet"}) == 1, (
        "02 and 03 share one"
    )


def test_each_process_of_a_training_is_counted(config, timed, monkeypatch):
    told = "convert: {source: folder}\nmaskrcnn: {steps: 100, batch_size: 10, crop_px: 160, gpus: %d}"
    stage = "05_train_maskrcnn"
    one, two = (forecast_run(config(told % gpus), [stage], images(6, 14))[stage] for gpus in (1, 2))
    own = 0.5e9 + 28 * 6e6 + 0.3e9 + 1e8 * (5 - 2)
    assert two.peak_bytes == pytest.approx(own + 90e6 + 250e6 + 2 * own)
    assert one.peak_bytes == pytest.approx(own + 90e6 + 1e8 * 5) and one.seconds == two.seconds, "of the same cores"
    on_gpu = replace(SPEED, cost=replace(COST, device="cuda"))
    monkeypatch.setattr(stages, "speed_of", lambda *about: on_gpu)
    one, two = (forecast_run(config(told % gpus), [stage], images(6, 14))[stage] for gpus in (1, 2))
    assert one.seconds - two.seconds == pytest.approx(0.5 * 100 * 5)
    assert (one.gpu_bytes, two.gpu_bytes) == (1e9, 0.5e9)


def test_where_images_choose_one_training_is_counted(config, timed):
    cfg = config("convert: {source: folder}\nfinetune: {steps: 100, eval_every: 50, batch_size: 10, crop_px: 160}")
    chosen = len(choosers(images(6, 14)[6:20]))
    seconds = 2 * 4 + 1 * 6 + 0.5 * 100 * 10 + 2 * chosen * 3 + 2 * 5 * 6 + 2 * 2 * 16
    found = forecast_run(cfg, [FINETUNE], images(6, 14))[FINETUNE]
    assert found.seconds == pytest.approx(seconds + 2 * 5 * chosen + 2 * 2 * OTHERS_MPX)
    assert found.peak_bytes == pytest.approx(0.59e9 + 28 * 6e6 + 0.3e9 + 1e8 * 8)
    proposed = config(
        "convert: {source: folder}\nlabel: {use: proposed}\nfinetune: {steps: 100, eval_every: 50, batch_size: 10}"
    )
    seconds = 2 * 4 + 1 * 6 + 0.5 * 100 * 10 + 2 * 2 * 3 + 2 * 5 * 6 + 2 * 2 * (4 + OTHERS_MPX)
    assert forecast_run(proposed, [FINETUNE], images())[FINETUNE].seconds == pytest.approx(seconds)


def test_quarters_of_one_image_and_a_run_without_validation_images_are_counted(config, timed):
    cfg = config("convert: {source: folder}\nfinetune: {steps: 100, batch_size: 10, crop_px: 160}")
    steps, whole, others = 0.5 * 33 * 10, 0.5 * 100 * 10, 2 * 2 * OTHERS_MPX
    quarters = 4 * (0.75 * (1 + 2 * 5) + steps + 2 * 5) + 1 + whole + 2 * 5 + 2 * 2
    assert forecast_run(cfg, [FINETUNE], images(1, 0, 1))[FINETUNE].seconds == pytest.approx(8 + quarters + others)
    folds = 3 * ((1 + 2 * 5) * 2 + steps + 2 * 5) + (1 + 2 * 5) * 3 + whole
    alone = 1 + steps + 5  # the two validation images are more than half
    found = forecast_run(cfg, [FINETUNE], images(1, 2, 0))[FINETUNE].seconds
    assert found == pytest.approx(8 + folds + alone + others)


@pytest.mark.parametrize("train", [4, 16])
def test_of_a_published_recipe_the_steps_that_it_takes_are_counted(config, timed, train):
    cfg = config("convert: {source: folder}\nfinetune: {backend: cellpose_sam, recipe: published, base: scratch}")
    run = RunImages(cfg, images(train, 14), ())
    steps = cfg.finetune.steps * max(train, 8) // 8
    told = one_training_s([1.0] * train, cfg.finetune, COST, 0)
    assert told == pytest.approx(train + 0.5 * cfg.finetune.batch_size * steps)
    chosen = len(choosers(images(train, 14)[train : train + 14]))
    scores, val = -(-steps // cfg.finetune.eval_every) + 1, run.mpx("finetune", "val")
    rest = 2 * val * min(chosen, cfg.finetune.val_images or chosen) / 14 * scores + 2 * 2 * run.mpx(
        "finetune", "val", "test"
    )
    sizes = [run.sizes("finetune")[str(k)] for k in range(train)]
    wanted = one_training_s(sizes, cfg.finetune, COST, 2) + rest
    assert training_s(run, "finetune", cfg.finetune, COST) == pytest.approx(wanted)


@pytest.mark.parametrize("source", ["folder", "drawn"])
def test_what_a_teacher_labels_judges_nothing_in_the_forecast(config, source):
    cfg = config(f"convert: {{source: {source}}}\nlabel: {{teacher: true}}")
    labels = [None] * 6 + [Instances.from_boxes([[0, 0, 9, 9]], (1000, 1000))] * 4
    run = RunImages(cfg, images(), [*labels, None])
    assert run.labelled.made_by == ["proposed"] * 6 + ["truth"] * 4
    assert {name for fold in run.regime.folds for name in fold} == {"6", "7"}


def test_labels_of_which_only_headers_were_read_tell_no_diameter(config, timed):
    cfg = config("convert: {source: folder}\nfinetune: {steps: 100}")
    perhaps = [Instances.from_labels(np.ones((1, 1), np.int32))] * len(images())
    wanted = forecast_run(cfg, [FINETUNE], images())
    assert forecast_run(cfg, [FINETUNE], images(), perhaps) == wanted


def test_cells_twice_as_wide_are_a_quarter_of_the_work(config, timed):
    cfg = config("convert: {source: folder}\nfinetune: {diameter_px: 60, steps: 100}")
    small, large = (forecast_run(cfg, [FINETUNE], images(side=side))[FINETUNE].seconds for side in (1000, 2000))
    steps = 8 + 0.5 * 8 * (100 + 5 * 33) + 2 * 2 * OTHERS_MPX
    assert large - steps == pytest.approx(4 * (small - steps), abs=0.3)
    labels = np.zeros((1000, 1000), np.int32)
    labels[:53, :53] = 1  # as large as a disc 60 px wide
    told = config("convert: {source: folder}\nfinetune: {steps: 100}")
    cells = [Instances.from_labels(labels)] * len(images())
    assert forecast_run(told, [FINETUNE], images(), cells)[FINETUNE].seconds == pytest.approx(small, rel=0.01)


def test_what_is_not_worth_timing_is_not_timed_and_memory_and_disk_are_counted(config, timed):
    cfg = config("convert: {source: folder}\nfinetune: {steps: 2}\nmaskrcnn: {steps: 2}")
    found = forecast_run(cfg, STAGES, images())
    assert not timed and {one.seconds for one in found.values()} == {None}
    assert found["01_convert"].disk_bytes > 3 * 10e6 and found[FINETUNE].peak_bytes > 0.5e9
    assert forecast_run(config(), STAGES, []) == {} and not timed


@pytest.mark.parametrize(
    ("base", "crop_px", "memory_mb", "disk_mb"),
    [
        ("starter_light", 160, (1073, 1389, 1357), (64, 75)),
        ("starter", 160, (1154, 1808, 1521), (222, 115)),
        ("starter_light", 224, (1071, 1714, 1324), (69, 75)),
    ],
)
def test_networks_that_are_not_timed_are_counted_as_measured(config, timed, base, crop_px, memory_mb, disk_mb):
    """What runs of a few images of 192 px took, 6 and 4 steps: 02, 03, 05."""
    cfg = config(
        f"convert: {{source: folder}}\nlabel: {{model: {base}}}\nfinetune: {{base: {base}, steps: 6, crop_px: {crop_px}}}\n"
        "maskrcnn: {steps: 6}"
    )
    found = forecast_run(cfg, STAGES, images(3, 1, 1, side=192))
    label, tuned, detector = (found[name] for name in ("02_label_with_cellpose", FINETUNE, "05_train_maskrcnn"))
    assert not timed
    assert [one.peak_bytes / 1e6 for one in (label, tuned, detector)] == pytest.approx(memory_mb, rel=0.3)
    assert [one.disk_bytes / 1e6 for one in (tuned, detector)] == pytest.approx(disk_mb, rel=0.3)
    assert found["06_evaluate_map_iou"].peak_bytes == pytest.approx(840e6, rel=0.1)


def test_what_trains_no_network_holds_none_and_unknown_weights_are_taken_as_large(config, timed):
    tuned = "finetune: {steps: 6, base: scratch}\nmaskrcnn: {steps: 2}"
    cfg = config(f"convert: {{source: folder}}\nlabel: {{backend: threshold}}\n{tuned}")
    found = forecast_run(cfg, STAGES, images(3, 1, 1, side=192))
    assert found["02_label_with_cellpose"].peak_bytes < 0.9e9 and not timed
    assert found[FINETUNE].disk_bytes > 5 * 30e6


def test_another_backend_under_an_untimed_plan_is_counted_too(config, timed):
    plan = stages.Plan.of(config("convert: {source: folder}\nfinetune: {steps: 2}"), STAGES, images(), timed=False)
    other = plan.under({"finetune.backend": "threshold"}).forecast()
    assert other[FINETUNE].seconds is None and other[FINETUNE].peak_bytes < plan.forecast()[FINETUNE].peak_bytes


def test_what_is_left_out_is_neither_timed_nor_told(config, timed):
    left = "convert: {source: folder}\nleave_out: [%s]\n"
    cfg = config(left % "label, finetune")
    stages = [name for name, section in STAGES.items() if section not in cfg.leave_out]
    found = forecast_run(cfg, stages, images(6, 14))
    assert list(found) == stages and found["01_convert"].seconds > 0
    assert [name for name, _ in timed] == [cfg.maskrcnn.backend, "threshold"]
    timed.clear()
    assert forecast_run(config(left % "label, finetune, coco, maskrcnn"), ["01_convert"], images()) and not timed
    without = config("leave_out: [finetune]\nfinetune: {base: nowhere.safetensors}")
    assert backend_of(without, "label")[0] == without.label.backend, "weights that nobody opens are not looked for"


def test_a_large_network_that_is_left_out_is_not_remarked_on(config, timed):
    cfg = config("leave_out: [label, finetune]\nlabel: {backend: cellpose_sam}\nfinetune: {backend: cellpose_sam}")
    assert remarks(cfg) == [] and not timed


def test_a_backend_is_timed_once_for_a_machine_and_its_settings(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    called = []

    def run(command, **_):
        called.append(command[3:])
        return SimpleNamespace(stdout=json.dumps(asdict(SPEED)))

    monkeypatch.setattr(subprocess, "run", run)
    for settings in ({"base": "a", "steps": 5}, {"base": "a", "steps": 9}, {"base": "a", "crop_px": 96}):
        assert speed_of("cellpose_unet", settings) == SPEED
    assert len(called) == 2, "steps change nothing, larger crops do"
    assert (
        speed_before("cellpose_unet", {"base": "a"}) == SPEED and speed_before("cellpose_unet", {"base": "b"}) is None
    )
    assert len(called) == 2, "what was timed before is asked for, and nothing is timed"
    monkeypatch.setattr(speed, "machine_key", lambda: "with more threads")
    assert speed_of("cellpose_unet", {"base": "a"}) == SPEED and len(called) == 3
    (tmp_path / "cellkit" / speed.KEPT).write_text('{"cut off')
    assert speed_of("cellpose_unet", {"base": "a"}) == SPEED and len(called) == 4, (
        "a cache that is damaged is made anew"
    )
    monkeypatch.setattr(speed, "costing_module", lambda name: SimpleNamespace())
    assert speed_of("tells_no_cost", {}) is None
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    failed = subprocess.CalledProcessError(1, "python", stderr="Traceback ...\nno room")
    for error, why in ((failed, "no room"), (subprocess.TimeoutExpired("python", 600), "Command 'python' timed out")):
        monkeypatch.setattr(subprocess, "run", Mock(side_effect=error))
        assert speed_of("cellpose_unet", {"base": "c"}) is None
        assert f"no forecast: cellpose_unet could not be timed: {why}" in capsys.readouterr().err


def test_a_person_is_told_what_follows_and_the_runner_what_was_timed_before(config, timed, monkeypatch):
    cfg = config("convert: {source: folder}\nfinetune: {steps: 100}")
    cells = [Instances.empty((1000, 1000))] * len(images())
    data = CellDataset(images(), cells, made_by=["truth", ""] + ["truth"] * (len(cells) - 2))
    monkeypatch.delenv(RUNNER_VARIABLE, raising=False)
    said = describe_forecast(cfg, data).splitlines()
    assert said[0].startswith("all that follows: about ") and "01_convert" not in "".join(said) and timed
    assert [line[:3] for line in said[1:]] == ["02_", "03_", "04_", "05_", "06_"]
    assert describe_forecast(cfg, data.subset([])) == "nothing can be told without images"
    away = config("convert: {source: folder}\nfinetune: {steps: 100, base: cyto3}")
    assert describe_forecast(away, data).startswith("cannot be told: "), (
        "notebook 01 goes on where weights are not here yet"
    )
    timed.clear()
    monkeypatch.setenv(RUNNER_VARIABLE, "null")
    said = describe_forecast(cfg, data)
    assert "not timed here" in said and said.endswith("`cellkit doctor CONFIG` times what is long enough")
    assert not timed, "cellkit run --until 01 waits for no timing"


def test_the_manifest_has_the_forecast_and_how_far_it_was_off_and_the_next_is_corrected(config, timed, tmp_path):
    cfg, said = config("convert: {source: folder}\nfinetune: {steps: 100}"), []
    write_json(tmp_path / "manifest.json", {"format": 1, "stages": {}, "attempts": {}})
    outlook = SimpleNamespace(records=images(), instances=[], sample=Sample())
    run = Foretold(tmp_path, cfg)
    run.look(outlook, [FINETUNE], said.append)
    run.note_forecast()
    assert said[0].startswith("forecast: about 26 min on this computer, 1.7 GB; ")
    told = read_json(tmp_path / "manifest.json")["forecast"][FINETUNE]
    assert run.seconds(FINETUNE) == told["seconds"] == 1556.8
    manifest = read_json(tmp_path / "manifest.json")
    (tmp_path / "weights").write_bytes(bytes(5000))
    took = peak_bytes()
    manifest["stages"][FINETUNE] = {"seconds": 2 * told["seconds"], "peak_bytes": took, "also": {},
                                    "outputs": {"weights": {"path": "weights"}}}  # fmt: skip
    run.note(FINETUNE, manifest, tmp_path / "no.ipynb")
    noted = read_json(tmp_path / "manifest.json")["forecast"][FINETUNE]
    assert noted["off"] == -0.5 and noted["took_seconds"] == 3113.6 and noted["took_peak_bytes"] == took
    assert noted["took_kept_bytes"] == noted["took_disk_bytes"] == 5000 and noted["disk_off"] > 1
    again = forecast_run(cfg, [FINETUNE], images())[FINETUNE]
    assert again.seconds == 2 * told["seconds"] and again.disk_bytes == told["disk_bytes"], "less disk is not believed"


SAM = Cost(step_s=0.5, find_s=2, step_bytes=1e9, searches=1, parameters=300_000_000, trained=50_000_000)
WITH_SAM = """
convert: {source: folder}
label: {backend: cellpose_sam, model: starter}
finetune: {backend: cellpose_sam, base: scratch, steps: 8, batch_size: 8, at_once: 2}
"""


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_of_a_large_network_its_memory_and_what_it_sees_are_counted(config, monkeypatch, device):
    cost = replace(SAM, device=device)
    speeds = {"cellpose_sam": Speed(cost, 4, 500_000_000)}
    monkeypatch.setattr(stages, "speed_of", lambda name, settings: speeds.get(name, SPEED))
    cfg = config(WITH_SAM)
    found = forecast_run(cfg, STAGES, images(6, 14))
    label = found["02_label_with_cellpose"]
    squares = 25  # of an image of 1000 px: they overlap
    floor = 2 * 16  # megapixels
    assert label.seconds == pytest.approx(2 * 4 + 2 * 12 * squares * 256**2 / 1e6 + floor, abs=0.1)
    network, training = 4 * 3e8, 12 * 5e7 + 2 * 1e9
    tuned = found[FINETUNE]
    if device == "cuda":
        assert (label.gpu_bytes, tuned.gpu_bytes) == (network, network + training)
        assert f"and {(network + training) / 1e9:.1f} GB of its GPU" in in_words(found)
        assert remarks(cfg) == []
    else:
        assert label.gpu_bytes == tuned.gpu_bytes == 0
        assert tuned.peak_bytes > 0.5e9 + network + training
        (remark,) = remarks(cfg)
        assert remark.startswith(
            "Cellpose-SAM has 300 million parameters and is made for a GPU; on a processor Cellpose U-Net"
        )
        assert remark.endswith("(label.backend: cellpose_unet, finetune.backend: cellpose_unet)")


def test_estimating_a_diameter_is_counted_by_the_size_of_images_and_a_second_look_where_there_will_be_one(
    config, timed
):
    cfg = config("convert: {source: folder}\nfinetune: {steps: 100}")
    told = [forecast_run(cfg, STAGES, images(side=side))["02_label_with_cellpose"].seconds for side in (256, 2048)]
    looked = [2 * (6 * tried_mpx((side, side)) + 10 * side**2 / 1e6 + 4 * side**2 / 1e6) for side in (256, 2048)]
    assert told == pytest.approx([8 + seconds for seconds in looked], abs=0.1)
    cells = [Instances.from_boxes([[60 * k, 0, side, side] for k in range(9)], (1000, 1000)) for side in (27, 27, 53)]
    once, twice = (
        config(f"convert: {{source: folder}}\nfinetune: {{diameter_of: {whose}}}") for whose in ("batch", "image")
    )
    run = [RunImages(cfg, images(1, 1, 1)[:3], cells) for cfg in (once, twice)]
    sizes = run[0].found_sizes("finetune")
    again = {name: run[1].found_sizes("finetune")[name] / sizes[name] for name in sizes}
    assert again["0"] == again["1"] == 1 and again["2"] == pytest.approx(1 + (27 / 53) ** 2)
    unset = [RunImages(cfg, images(1, 1, 1)[:3], labels) for labels in (cells, cells[:1] * 3)]
    assert unset[0].found_sizes("finetune") == run[1].found_sizes("finetune"), "their labels differ by half"
    assert unset[1].found_sizes("finetune") == sizes, "these do not"
    assert [run.times_searched("finetune") for run in unset] == [2, 1] and run[1].times_searched("finetune") == 1
    small = [Instances.from_boxes([[10 * k, 20 * row, 9, 9] for k in range(90) for row in range(40)], (1000, 1000))]
    skewed = RunImages(cfg, images(1, 1, 1)[:3], [cells[2], cells[2], *small])
    assert skewed.diameter_px < 11 and skewed.diameter("finetune") == pytest.approx(60, abs=1), "looked at first"
