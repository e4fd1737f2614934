"""What this machine can run, and what to do about the rest."""

import importlib.util
import json
import shutil
from importlib import metadata

import pytest
from packaging.specifiers import SpecifierSet

from cellkit import machine, manifest, models
from cellkit.commands import machine_report
from cellkit.fetch.find import find_weights
from cellkit.forecast import fits
from cellkit.forecast.stages import Plan
from cellkit.models import weights
from cellkit.room import Memory, memory_of
from cellkit.run import stale


@pytest.fixture(scope="module")
def found():
    return machine_report.examine()


class TestHere:
    """On a machine where the tests run, the default path works."""

    def test_all_is_well_and_said_in_plain_values(self, found):
        assert found["ok"] is True
        assert found["problems"] == []
        assert json.loads(json.dumps(found, allow_nan=False)) == found

    def test_device_and_memory_are_what_torch_and_the_system_say(self, found):
        import torch

        from cellkit.machine import arithmetic

        here = arithmetic()
        assert found["device"]["kind"] == here.device.type
        assert f"torch.{found['device']['number_type']}" == str(here.dtype)
        assert found["device"]["bfloat16"] is (here.dtype == torch.bfloat16)
        assert found["device"]["cpus"] >= 1
        assert 0 < found["memory"]["free_gb"] <= found["memory"]["total_gb"]
        assert found["disk"]["free_gb"] > 0

    def test_every_requirement_is_compared(self, found):
        listed = {item["name"]: item for item in found["packages"]}
        assert listed["python"]["ok"]
        assert listed["torch"]["installed"] == metadata.version("torch")
        assert listed["cellpose"]["wanted"] in ("<4.3,>=4.2", ">=4.2,<4.3")
        assert "pytest" not in listed, "extras are not required"

    def test_backends_and_weights(self, found):
        able = {name: importlib.util.find_spec("detectron2") is not None or name != "maskrcnn_detectron2"
                for name in models.backend_names()}  # fmt: skip
        assert {item["name"]: item["ok"] for item in found["backends"]} == able and found["ok"]
        for item in found["backends"]:
            assert item["ok"] or "conda install -c conda-forge detectron2; PyPI has none" in item["remedy"]
        (starter,) = [item for item in found["weights"] if item["name"] == "starter"]
        assert starter["ok"]
        assert starter["sha256"] == weights.read_card(find_weights("starter")).sha256

    def test_another_arithmetic_is_noted(self, found):
        for number, noted in (("float32", False), ("bfloat16", True), (None, False)):
            text = machine_report.report_text(found | {"device": found["device"] | {"number_type": number}})
            assert ("note     bfloat16 here, float32 on other processors" in text) is noted

    def test_a_run_is_forecast(self, found):
        told = {"03_finetune_cellpose": {"seconds": 500, "peak_bytes": 2.1e9}}
        text = machine_report.report_text(found | {"forecast": told})
        assert "forecast about 8 min on this computer, 2.1 GB, if nothing else runs on it\n         03_fine" in text
        assert "8m20s, 2.1 GB" in text and "forecast cannot be told" in machine_report.report_text(
            found | {"forecast": {}}
        )

    def test_the_notebooks_that_a_configuration_runs_are_forecast(self, monkeypatch, tmp_path):
        asked = []

        def plan(cfg, stages, *_, **__):
            asked[:] = stages
            return Plan(cfg, {}, [], [], {}, {})

        monkeypatch.setattr(Plan, "of", plan)
        path = tmp_path / "run.yaml"
        path.write_text(
            "classes: [HEK, N2a]\nconvert: {channels: {nuclei: DAPI}}\n"
            "leave_out: [label, maskrcnn]\nrecipes: {unet_border: {}}\n"
        )
        told = machine_report.check_forecast(path)
        assert asked == [
            "01_convert", "03_finetune_cellpose", "04_cells_to_coco", "11_unet_border", "06_evaluate_map_iou"
        ]  # fmt: skip
        assert told["forecast"] == {} and told["recipes"] == "", "all of them can be counted"

    def test_a_run_that_does_not_fit_is_a_problem(self, said, monkeypatch, tmp_path):
        """As `cellkit run` refuses it; what only becomes slow is a note."""
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        path = tmp_path / "run.yaml"
        path.write_text(
            "classes: [HEK, N2a]\nconvert: {channels: {nuclei: DAPI}}\nfinetune: {steps: 2}\nmaskrcnn: {steps: 2}\n"
        )
        monkeypatch.setattr(fits, "memory_of", lambda: Memory(2 * 10**9, 10**8))
        code, out, _ = said("doctor", path)
        assert code == 2 and "of memory, 100 MB are free" in out and "--force begins all the same" in out
        assert out.strip().endswith("all the default path needs is here, but this run would be refused")
        monkeypatch.setattr(fits, "memory_of", lambda: Memory(2 * 10**9, 10**8, swap=10**11))
        code, out, _ = said("doctor", path)
        assert code == 0 and "\nnote     " in out and "would be swapped" in out
        told = machine_report.check_forecast(path)
        assert told["unfit"] == [] and len(told["said"]) == 1

    @pytest.mark.parametrize("left", [(), ("06_evaluate_map_iou",)])
    def test_what_a_run_has_finished_is_no_problem(self, said, monkeypatch, tmp_path, left):
        """Where `cellkit run` has only to do what fits."""
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        path = tmp_path / "run.yaml"
        path.write_text(
            "classes: [HEK, N2a]\nconvert: {channels: {nuclei: DAPI}}\nfinetune: {steps: 2}\nmaskrcnn: {steps: 2}\n"
        )
        told = machine_report.check_forecast(path)["forecast"]
        free = 1 + max([told[name]["peak_bytes"] for name in left] or [10**8])
        assert free < max(one["peak_bytes"] for one in told.values()), "the whole run would not fit"
        monkeypatch.setattr(fits, "memory_of", lambda: Memory(2 * 10**9, free))
        assert said("doctor", path)[0] == 2

        def states(folder, cfg, books, *_):
            return [stale.StageState(book.name, "missing" if book.name in left else "fresh") for book in books]

        monkeypatch.setattr(stale, "stage_states", states)
        code, out, _ = said("doctor", path)
        assert code == 0 and "would be refused" not in out
        wanted = f"has {left[0]} of it left to run" if left else "has nothing of it left to run"
        assert "the forecast is of a run from the beginning; " in out and wanted in out

    def test_the_minutes_of_recipes_are_said(self, found):
        text = machine_report.report_text(found | {"forecast": {}, "recipes": "11_unet_border about 12 min"})
        assert "\nrecipes  11_unet_border about 12 min" in text
        assert "recipes " not in machine_report.report_text(found | {"forecast": {}, "recipes": ""})

    def test_words(self, found):
        text = machine_report.report_text(found)
        assert "all the default path needs is here" in text
        for word in ("device", "memory", "maskrcnn_torchvision", "starter", metadata.version("torch")):
            assert word in text


class TestFaults:
    @pytest.fixture
    def lacking(self, monkeypatch, tmp_path):
        """A backend of one's own, which needs a package that nobody has."""
        (tmp_path / "mine.py").write_text('TITLE = "Mine"\nREQUIRES = ("skimage", "nosuchpackage")\n')
        monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path)])

    def test_a_missing_package_and_the_line_that_installs_it(self, lacking):
        item = next(item for item in machine_report.check_backends() if item["name"] == "mine")
        assert not item["ok"]
        assert item["problem"] == "backend 'mine' needs the package 'nosuchpackage'"
        assert item["remedy"] == "pip install scikit-image nosuchpackage"

    def test_a_default_backend_that_cannot_run_is_a_problem(self, lacking, monkeypatch):
        monkeypatch.setattr(machine_report, "FLOOR", "mine")
        found = machine_report.examine()
        assert not found["ok"]
        assert [p["remedy"] for p in found["problems"]] == ["pip install scikit-image nosuchpackage"]
        assert "the default path cannot run yet" in machine_report.report_text(found)

    def test_an_extra_backend_that_cannot_run_is_told_but_no_problem(self, lacking):
        found = machine_report.examine()
        assert found["ok"]
        not_here = {"maskrcnn_detectron2"} if importlib.util.find_spec("detectron2") is None else set()
        assert {item["name"] for item in found["backends"] if not item["ok"]} == {"mine"} | not_here
        assert "nosuchpackage" in machine_report.report_text(found)

    @pytest.mark.parametrize(
        ("installed", "wanted", "problem"),
        [
            ("2.15.0", ">=2.10", ""),
            ("2.15.0+cpu", ">=2.10", ""),
            ("2.11.0rc1", ">=2.10", ""),
            ("2.9.1", ">=2.10", "torch is 2.9.1, >=2.10 is wanted"),
            (None, ">=2.10", "torch is not installed, >=2.10 is wanted"),
        ],
    )
    def test_versions(self, installed, wanted, problem):
        item = machine_report._compared("torch", installed, SpecifierSet(wanted), "pip install 'torch>=2.10'")
        assert (item["ok"], item["problem"]) == (not problem, problem)
        assert bool(item["remedy"]) == bool(problem)

    def test_a_package_without_metadata(self):
        (item,) = machine_report.check_packages("no-such-package-at-all")
        assert item["problem"] == "no-such-package-at-all is not installed"

    def test_weights_that_were_changed_and_weights_that_are_gone(self, monkeypatch, tmp_path):
        path = find_weights("starter")
        for file in (path, path.with_suffix(".json")):
            shutil.copy(file, tmp_path)
        monkeypatch.setattr(machine_report, "PACKAGED", tmp_path)
        with open(tmp_path / "starter.safetensors", "r+b") as file:
            file.seek(-1, 2)
            last = file.read(1)[0]
            file.seek(-1, 2)
            file.write(bytes([last ^ 1]))
        (item,) = machine_report.check_weights()
        assert "sha256 differs" in item["problem"]
        (tmp_path / "starter.safetensors").unlink()
        found = machine_report.examine()
        assert found["problems"][0]["problem"] == "the starter weights are missing"

    def test_a_full_disk(self, monkeypatch, tmp_path):
        monkeypatch.setattr(manifest, "MIN_FREE_BYTES", 10**18)
        item = machine_report.check_disk(tmp_path)
        assert not item["ok"]
        assert "MB are free on the disk of" in item["problem"]

    def test_a_container_allows_less_memory_than_the_machine_has(self, monkeypatch, tmp_path):
        files = {
            "proc/meminfo": "MemTotal: 9000000 kB\nMemAvailable: 8000000 kB\n",
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": "2000000000\n",
            "sys/fs/cgroup/memory.current": "500000000\n",
        }
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        monkeypatch.setattr(machine, "memory_of", lambda: memory_of(tmp_path))
        assert machine.memory() == {"total_gb": 2.0, "free_gb": 1.5}

    def test_the_data_folder(self, monkeypatch, tmp_path):
        monkeypatch.delenv("CELLKIT_DATA", raising=False)
        assert machine_report.check_data() == {
            "name": "CELLKIT_DATA",
            "ok": True,
            "problem": "",
            "remedy": "",
            "value": None,
        }
        monkeypatch.setenv("CELLKIT_DATA", str(tmp_path))
        assert machine_report.check_data()["ok"]
        monkeypatch.setenv("CELLKIT_DATA", str(tmp_path / "none"))
        assert "no such folder" in machine_report.check_data()["problem"]
