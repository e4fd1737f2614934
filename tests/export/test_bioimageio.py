"""A package of bioimage.io is valid, runs in its publishers' own program, and comes back as weights to start from."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from export_cases import SMALL, answers, planes_of_sizes, small, thousand_scenes  # noqa: F401

from cellkit.errors import UserError
from cellkit.export.bioimageio import scaled
from cellkit.export.formats import export_model
from cellkit.export.validator import check_package
from cellkit.files import sha256_file
from cellkit.models import weights
from cellkit.predict.model import find_model

pytestmark = pytest.mark.filterwarnings("ignore")  # of the validator: files it leaves open, torch's word on TorchScript


@pytest.fixture(scope="module")
def summaries() -> list:
    """What the validator said while the package was made."""
    return []


@pytest.fixture(scope="module")
def package(small, summaries, tmp_path_factory) -> tuple[Path, list[str]]:  # noqa: F811
    import bioimageio.core

    test_model = bioimageio.core.test_model
    out = tmp_path_factory.mktemp("package") / "model.zip"
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patched:
        warnings.simplefilter("ignore")
        patched.setattr(bioimageio.core, "test_model", lambda path: summaries.append(test_model(path)) or summaries[-1])
        return out, export_model(find_model(small), "bioimageio", out, licence="CC-BY-4.0", authors=["A. Person"])


def test_what_is_said(package):
    out, said = package
    assert said[0] == f"{out}: cellpose_tuned as a package of bioimage.io"
    assert said[1].startswith("valid, and runs as it should, says bioimageio.spec ") and len(said) == 2


def test_the_validator_of_the_publisher_is_content(package, summaries):
    import bioimageio.spec

    described = bioimageio.spec.load_description(package[0])
    assert described.validation_summary.status == "valid-format"
    assert (described.license, described.authors[0].name) == ("CC-BY-4.0", "A. Person")
    assert described.config.cellkit["parents"] == ["starter_light"]
    (summary,) = summaries
    assert summary.status == "passed"
    ran = [detail.name for detail in summary.details if "Reproduce test outputs" in detail.name]
    assert {name.split("(")[1].rstrip(")") for name in ran} == {"pytorch_state_dict", "torchscript", "onnx"}


def test_it_comes_back_as_weights_to_start_from(package, small, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    back, first = find_model(package[0]), find_model(small)
    assert back.config == first.config | {"diameter_of": "batch", "normalise": [1.0, 99.0]}
    told, found = weights.load_tensors(small), weights.load_tensors(back.checkpoint)
    assert told.keys() == found.keys() and all(bool((told[name] == found[name]).all()) for name in told)
    for planes in planes_of_sizes((2, 64, 40)):
        np.testing.assert_array_equal(answers(back.checkpoint, planes), answers(small, planes))
    assert weights.parents_of(back.checkpoint)[1:] == ["starter_light"]


def scenes_of_sizes():
    return planes_of_sizes((1, 64, 64), (2, 72, 120))


@pytest.mark.parametrize(
    ("kind", "scenes"),
    [
        ("pytorch_state_dict", scenes_of_sizes),
        ("torchscript", scenes_of_sizes),
        ("onnx", scenes_of_sizes),
        ("onnx", thousand_scenes),  # the other two are computed by torch, as cellkit's own maps are
    ],
)
def test_run_back_each_format_gives_the_maps_of_cellkit(package, small, kind, scenes):  # noqa: F811
    import bioimageio.core
    import bioimageio.spec
    from bioimageio.core import Tensor
    from bioimageio.core.axis import AxisId
    from bioimageio.core.sample import Sample

    described = bioimageio.spec.load_description(package[0])
    with bioimageio.core.create_prediction_pipeline(described, weight_format=kind) as pipeline:
        for raw in scenes():
            raw = raw * 700 + 900  # as a camera gives it: the package scales it
            tensor = Tensor(raw, dims=tuple(map(AxisId, ("batch", "channel", "y", "x"))))
            sample = Sample(members={"planes": tensor}, stat={}, id="one")
            whole = {"skip_input_padding": True, "skip_output_cropping": True}
            found = pipeline.predict_sample_without_blocking(sample, **whole).members["maps"].data.to_numpy()
            np.testing.assert_allclose(found, answers(small, scaled(raw, (1, 99))), atol=1e-4)


def test_the_description_says_all_that_cellkit_knows(package):
    with zipfile.ZipFile(package[0]) as archive:
        told = yaml.safe_load(archive.read("rdf.yaml"))
        page = archive.read("README.md").decode()
    assert told["format_version"].startswith("0.5.") and set(told["weights"]) == {
        "pytorch_state_dict",
        "torchscript",
        "onnx",
    }
    assert told["config"]["cellkit"]["config"]["cellprob_threshold"] == 0.5
    assert told["weights"]["pytorch_state_dict"]["architecture"]["kwargs"] == {"widths": list(SMALL)}
    assert "cellprob_threshold=0.5" in page and "Validation" in page and "0.61" in page


def test_the_same_model_gives_the_same_files(package, small, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr("cellkit.export.bioimageio.check_package", lambda path: "nobody")
    export_model(find_model(small), "bioimageio", tmp_path / "again.zip", licence="CC-BY-4.0", authors=["A. Person"])
    with zipfile.ZipFile(package[0]) as one, zipfile.ZipFile(tmp_path / "again.zip") as two:
        assert one.namelist() == two.namelist()
        same = [name for name in one.namelist() if one.read(name) == two.read(name)]
    assert set(one.namelist()) - set(same) <= {"weights_torchscript.pt", "rdf.yaml"}, (
        "torch numbers classes in its scripts"
    )


def test_a_licence_is_never_guessed(small, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr("cellkit.export.bioimageio.check_package", lambda path: "nobody")
    said = export_model(find_model(small), "bioimageio", tmp_path / "m.zip")
    assert said[-1] == "no licence goes along (its card says 'of your images'): give one with --licence, e.g. CC-BY-4.0"
    export_model(find_model(small), "bioimageio", tmp_path / "m.zip")  # an earlier package is replaced
    with zipfile.ZipFile(tmp_path / "m.zip") as archive:
        assert "license" not in yaml.safe_load(archive.read("rdf.yaml"))
    with pytest.raises(UserError, match="'CC-BY-4' is no licence that is known here"):
        export_model(find_model(small), "bioimageio", tmp_path / "n.zip", licence="CC-BY-4")
    assert not (tmp_path / "n.zip").exists()


def test_a_package_that_runs_wrong_is_refused(package, tmp_path):
    """Valid in form, and its maps are not those that it computes: one format of weights is enough to see it."""
    with zipfile.ZipFile(package[0]) as archive:
        archive.extractall(tmp_path)
    told = yaml.safe_load((tmp_path / "rdf.yaml").read_text())
    told["weights"] = {"pytorch_state_dict": told["weights"]["pytorch_state_dict"]}
    test = told["outputs"][0]["test_tensor"]
    np.save(tmp_path / test["source"], np.load(tmp_path / test["source"]) + 0.5)
    test["sha256"] = sha256_file(tmp_path / test["source"])
    (tmp_path / "rdf.yaml").write_text(yaml.safe_dump(told))
    with pytest.raises(UserError, match="the validator refuses the package: Reproduce test outputs"):
        check_package(tmp_path / "rdf.yaml")


# ---- Hugging Face ---------------------------------------------------------------------------------------------------
def test_a_folder_for_the_hub_comes_back_whole(small, tmp_path):  # noqa: F811
    from huggingface_hub import ModelCard

    said = export_model(find_model(small), "huggingface", tmp_path / "hub", licence="CC-BY-NC-4.0")
    assert said == [f"{tmp_path / 'hub'}: cellpose_tuned as a folder for the Hub"]
    card = ModelCard.load(tmp_path / "hub/README.md")
    assert (card.data.license, card.data.library_name) == ("cc-by-nc-4.0", "cellkit")
    assert "starter_light" in card.text and "0.61" in card.text
    back = find_model(tmp_path / "hub/model.safetensors")
    assert back.config == find_model(small).config
    told, found = weights.load_tensors(small), weights.load_tensors(back.checkpoint)
    assert told.keys() == found.keys() and all(bool((told[name] == found[name]).all()) for name in told)
    export_model(find_model(small), "huggingface", tmp_path / "hub")  # a folder that was written so is replaced
    assert ModelCard.load(tmp_path / "hub/README.md").data.license == "other"


def test_a_detector_goes_to_the_hub(tmp_path):
    path = weights.save_checkpoint(
        tmp_path / "maskrcnn.safetensors",
        {},
        "maskrcnn_torchvision",
        classes=("HEK", "N2a"),
        config={"fpn_channels": 16},
    )
    export_model(find_model(path), "huggingface", tmp_path / "hub")
    assert find_model(tmp_path / "hub/model.safetensors").classes == ("HEK", "N2a")
    assert "which it is: HEK, N2a" in (tmp_path / "hub/README.md").read_text()


def test_a_threshold_that_is_set_for_the_export_holds_for_every_class(tmp_path):
    told = {"fpn_channels": 16, "score_threshold": 0.3, "by_line": {"1": {"score_threshold": 0.2, "min_area_px": 30}}}
    path = weights.save_checkpoint(
        tmp_path / "maskrcnn.safetensors", {}, "maskrcnn_torchvision", classes=("HEK", "N2a"), config=told
    )
    export_model(find_model(path, {"score_threshold": 0.6}), "huggingface", tmp_path / "hub")
    config = weights.read_card(tmp_path / "hub/model.safetensors").config
    assert (config["score_threshold"], config["by_line"]) == (0.6, {"1": {"min_area_px": 30}})


def test_another_folder_is_left_alone(small, tmp_path):  # noqa: F811
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="exists and is no model that was exported"):
        export_model(find_model(small), "huggingface", tmp_path / "mine")
    (tmp_path / "mine/model.safetensors").write_bytes(b"of mine")
    (tmp_path / "mine/model.json").write_text("no card")
    with pytest.raises(UserError, match="exists and is no model that was exported"):
        export_model(find_model(small), "huggingface", tmp_path / "mine")
    with pytest.raises(UserError, match="threshold has no weights"):
        export_model(find_model("threshold"), "huggingface", tmp_path / "hub")


def test_a_folder_that_holds_more_is_left_alone(small, tmp_path):  # noqa: F811
    """As one that was cloned from the Hub does: its history would be lost."""
    export_model(find_model(small), "huggingface", tmp_path / "hub")
    (tmp_path / "hub/.git").mkdir()
    with pytest.raises(UserError, match="hub holds more than an exported model: .git"):
        export_model(find_model(small), "huggingface", tmp_path / "hub")
    assert (tmp_path / "hub/.git").is_dir()


def test_what_is_set_for_the_export_goes_along(small, tmp_path):  # noqa: F811
    export_model(find_model(small, {"min_area_px": 33, "diameter_px": 44}), "huggingface", tmp_path / "hub")
    back = find_model(tmp_path / "hub/model.safetensors")
    assert (back.config["min_area_px"], back.config["diameter_px"], back.config["flow_threshold"]) == (33, 44, 0.3)
    assert '"min_area_px": 33' in (tmp_path / "hub/README.md").read_text()
    assert weights.read_card(back.checkpoint).config["widths"] == list(SMALL)


def test_classes_and_the_model_that_finds_the_cells_go_to_the_hub_together(small, tmp_path):  # noqa: F811
    weights.copy_checkpoint(small, tmp_path / "run/cells")
    told = {"segmenter": "cells.safetensors", "segmenter_sha256": sha256_file(small)}
    path = weights.save_checkpoint(
        tmp_path / "run/classes.safetensors", {}, "cell_classes", classes=("HEK", "N2a"), config=told
    )
    for area in (33, 34):  # and once more, over what was written
        export_model(find_model(path, {"min_area_px": area}), "huggingface", tmp_path / "hub")
        back = find_model(tmp_path / "hub/model.safetensors")
        assert back.cell_classes.parent == back.checkpoint.parent == tmp_path / "hub"
        assert (back.classes, back.config["min_area_px"]) == (("HEK", "N2a"), area)
    page = (tmp_path / "hub/README.md").read_text()
    assert "Trained from: starter_light." in page and "of its parts: none named; of your images" in page
    assert "license: other" in page
