"""A model is found by name, by file or in a run, with the settings that go with it; nothing else takes its place."""

import json
import shutil

import numpy as np
import pytest
from predict_cases import CHANNELS, THRESHOLD, run_dir, unet  # noqa: F401

from cellkit.errors import UserError
from cellkit.fetch.find import find_weights
from cellkit.microscope.convert import Conversion
from cellkit.models import backend_module, backend_names
from cellkit.predict.model import checked_settings, find_model


class TestFindModel:
    def test_threshold_needs_no_file(self):
        assert (THRESHOLD.backend, THRESHOLD.checkpoint, THRESHOLD.classes) == ("threshold", None, ())
        assert THRESHOLD.config == {"diameter_px": 30.0}
        assert THRESHOLD.sha256 == ""

    def test_starter_ships_with_the_package(self):
        model = find_model("starter")
        assert (model.backend, model.conversion) == ("cellpose_unet", None)
        assert model.checkpoint == find_weights("starter")

    def test_a_file_brings_its_backend_classes_and_settings(self, unet):
        model = find_model(unet, {"min_area_px": 40})
        assert model.backend == "cellpose_unet"
        assert model.config["diameter_px"] == 28.0, "from the card"
        assert model.config["min_area_px"] == 40, "what is asked for wins"

    def test_a_file_without_card_is_a_published_cellpose(self, tmp_path):
        import torch

        torch.save({"a": torch.ones(1)}, tmp_path / "cyto3")
        model = find_model(tmp_path / "cyto3")
        assert model.backend == "cellpose_unet"
        with pytest.raises(UserError, match="no two-channel Cellpose U-Net"):
            model.load()

    def test_a_file_without_card_goes_to_the_backend_that_knows_its_tensors(self, tmp_path):
        import torch

        from cellkit.models.sam_network import Shape, load_start

        small = Shape(width=16, depth=1, heads=2, mlp=16, neck=8, places=(27,))
        torch.save(load_start("scratch", 0, small).state_dict(), tmp_path / "my_cpsam")
        model = find_model(tmp_path / "my_cpsam", {"min_area_px": 5})
        assert (model.backend, model.config) == ("cellpose_sam", {"min_area_px": 5})
        (found,) = model.load()([np.zeros((40, 30, 3), np.uint8)])
        assert found.shape == (40, 30)

    def test_a_model_of_an_earlier_state_of_its_run_says_so(self, run_dir, tmp_path, capsys):
        shutil.copytree(run_dir, tmp_path / "again")
        manifest = json.loads((tmp_path / "again" / "manifest.json").read_text())
        images = manifest["stages"]["01_convert"]["outputs"]["images"]
        manifest["stages"]["03_finetune_cellpose"]["inputs"]["images"] = images | {"sha256": "0"}
        (tmp_path / "again" / "manifest.json").write_text(json.dumps(manifest))
        find_model(f"{tmp_path}/again:maskrcnn")
        assert capsys.readouterr().err == ""
        find_model(f"{tmp_path}/again:cellpose_tuned")
        assert "it read another images than 01_convert has written since" in capsys.readouterr().err

    def test_a_model_of_a_run_comes_with_the_runs_settings(self, run_dir):
        tuned, base = find_model(f"{run_dir}:cellpose_tuned"), find_model(f"{run_dir}:cellpose_base")
        assert tuned.checkpoint == run_dir / "03_finetune_cellpose/cellpose_tuned.safetensors"
        assert base.checkpoint == run_dir / "03_finetune_cellpose/cellpose_base.safetensors"
        assert base.config == find_model("starter").config != tuned.config, "each is read as its own card says"
        assert tuned.config["cellprob_threshold"] == 6.0
        kept = find_model(f"{run_dir}:cellpose")
        assert (kept.sha256, kept.config) == (base.sha256, base.config)
        maskrcnn = find_model(f"{run_dir}:maskrcnn", {"score_threshold": 0.3})
        assert (maskrcnn.classes, maskrcnn.config) == (("HEK", "N2a"), {"score_threshold": 0.3})
        floor = find_model(f"{run_dir}:threshold")
        assert floor.checkpoint == run_dir / "02_label_with_cellpose/threshold.safetensors"
        assert floor.config == {"diameter_px": 33.0, "min_area_px": 20}

    def test_a_model_of_a_run_comes_with_the_runs_conversion(self, run_dir):
        conversion = find_model(f"{run_dir}:threshold").conversion
        assert conversion == Conversion(
            CHANNELS | {"red": None}, 1, (1.0, 99.0), 0.5, always=False, made=run_dir / "images"
        )

    def test_a_run_whose_channels_were_colours_converts_pictures_too_but_its_own_not_twice(
        self, run_dir, tmp_path, capsys
    ):
        shutil.copytree(run_dir, tmp_path / "run")
        manifest = json.loads((tmp_path / "run/manifest.json").read_text())
        manifest["stages"]["01_convert"]["config"]["channels"] = {"nuclei": "blue", "cytoplasm": "red"}
        (tmp_path / "run/manifest.json").write_text(json.dumps(manifest))
        conversion = find_model(f"{tmp_path}/run:threshold").conversion
        assert conversion.always and "nuclei = blue, cytoplasm = red" in capsys.readouterr().err
        assert conversion.made_already(tmp_path / "run/images/a.png") and not conversion.made_already(
            tmp_path / "a.png"
        )

    def test_the_floor_of_a_run_is_at_its_own_diameter_unless_one_is_given(self, run_dir):
        given = find_model(f"{run_dir}:threshold", {"diameter_px": 41})
        assert (given.config["diameter_px"], given.own_px) == (41.0, True)
        assert not find_model(f"{run_dir}:threshold").own_px

    @pytest.mark.parametrize(
        ("spec", "problem", "remedy"),
        [
            ("startr", r"no weights 'startr' \(did you mean 'starter'\?\)", "RUN:NAME"),
            ("treshold", r"did you mean 'threshold'", "starter, starter_light, cyto3, cyto2, cyto, nuclei"),
            ("none.safetensors", "no weights 'none.safetensors'", "the path of a checkpoint"),
            ("none/run:maskrcnn", "a run folder that is not there: none/run", "cellkit run CONFIG"),
            ("{run}:maskrcn", r"has no model 'maskrcn' \(did you mean 'maskrcnn'\?\)", "cellpose_tuned"),
            ("{run}", "is a folder", "RUN:NAME"),
        ],
    )
    def test_nothing_else_takes_its_place(self, run_dir, spec, problem, remedy):
        with pytest.raises(UserError, match=problem) as caught:
            find_model(spec.format(run=run_dir))
        assert len(str(caught.value).splitlines()) == 2
        assert remedy in str(caught.value)

    def test_a_checkpoint_that_was_changed_is_refused(self, run_dir, tmp_path):
        shutil.copytree(run_dir, tmp_path / "run")
        path = tmp_path / "run/03_finetune_cellpose/cellpose_tuned.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"\0")
        with pytest.raises(UserError, match="is not as 03_finetune_cellpose left it"):
            find_model(f"{tmp_path}/run:cellpose_tuned")

    @pytest.mark.parametrize(
        ("backend", "key", "value", "problem"),
        [
            ("threshold", "diamter_px", 30, "has no setting 'diamter_px' .*did you mean 'diameter_px'"),
            ("threshold", "flow_threshold", 0.4, "threshold has no setting 'flow_threshold'"),
            ("cellpose_unet", "fpn_channels", 96, "has no setting"),
            ("cellpose_unet", "diameter_px", 0, "diameter_px is 0\ndiameter_px is a number >= 2 and <= 2000, or null"),
            ("cellpose_unet", "diameter_px", "big", "diameter_px is 'big'"),
            ("cellpose_unet", "diameter_px", True, "diameter_px is True"),
            ("cellpose_unet", "diameter_px", float("nan"), "diameter_px is nan"),
            ("cellpose_unet", "min_area_px", 1.5, "a whole number"),
            ("cellpose_unet", "channels", "red", "one of 'both', 'nuclei', 'cytoplasm'"),
            ("maskrcnn_torchvision", "score_threshold", 1.1, "a number >= 0 and <= 1"),
        ],
    )
    def test_settings_are_checked(self, backend, key, value, problem):
        with pytest.raises(UserError, match=problem):
            checked_settings(backend, {key: value})

    @pytest.mark.parametrize("name", backend_names())
    def test_every_backend_reads_with_its_settings(self, name):
        backend = backend_module(name)
        read = set(backend.Settings.model_fields) - {
            "precision",
            "squares_at_once",
        }  # how networks compute, not how they are read
        assert read <= set(backend.DEFAULTS)
