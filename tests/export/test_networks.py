"""A network that left computes what cellkit's own does, at every size, and says how it is read."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import write_png
from export_cases import SMALL, answers, leaving, planes_of_sizes, small, thousand_scenes  # noqa: F401
from hypothesis import given, settings
from hypothesis import strategies as st

from cellkit.cells.drawn.camera import expose
from cellkit.cells.drawn.field import draw_field
from cellkit.cells.drawn.style import FieldStyle
from cellkit.cells.records import write_records
from cellkit.config.sections import ConvertConfig, FinetuneConfig
from cellkit.errors import UserError
from cellkit.export import plain_unet
from cellkit.export.formats import FORMATS, export_model
from cellkit.fetch.find import find_weights
from cellkit.formats.coco_reading import read_coco
from cellkit.models import weights
from cellkit.models.unet_network import CellposeUNet
from cellkit.predict.files import predict_files
from cellkit.predict.model import find_model
from cellkit.run.folder import Run
from cellkit.scores.iou import overlaps

SIZES = ((1, 16, 16), (1, 64, 96), (3, 136, 40))


@pytest.fixture(scope="module")
def onnx_file(small, tmp_path_factory):  # noqa: F811
    out = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export_model(find_model(small), "onnx", out)
    return out


@pytest.fixture(scope="module")
def session(onnx_file):
    return onnxruntime.InferenceSession(str(onnx_file), providers=["CPUExecutionProvider"])


def run(session, planes):
    return session.run(None, {"planes": planes})[0]


def test_plain_torch_is_the_network(small, leaving):  # noqa: F811
    for planes in planes_of_sizes(*SIZES):
        with torch.no_grad():
            found = leaving.network(torch.from_numpy(planes)).numpy()
        np.testing.assert_allclose(found, answers(small, planes), atol=1e-5)


def test_the_file_that_goes_along_needs_torch_alone():
    text = Path(plain_unet.__file__).read_text(encoding="utf-8")
    imported = set(re.findall(r"^(?:from|import) ([\w.]+)", text, re.MULTILINE))
    assert imported == {"__future__", "collections.abc", "torch"}
    shapes = [
        {k: v.shape for k, v in kind(widths=SMALL).state_dict().items()}
        for kind in (CellposeUNet, plain_unet.CellposeUNet)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", ["starter", "starter_light"])
def test_onnx_equals_torch_for_the_weights_we_ship(name, tmp_path):
    export_model(find_model(name), "onnx", tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    for planes in planes_of_sizes((1, 8, 8), (2, 64, 104)):
        np.testing.assert_allclose(run(session, planes), answers(find_weights(name), planes), atol=1e-4, rtol=0)


@settings(max_examples=15)
@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.floats(0.01, 30), st.integers(0, 2**31))
def test_onnx_equals_torch_at_every_size(session, small, batch, rows, columns, size, seed):  # noqa: F811
    planes = np.random.default_rng(seed).normal(0.4, size, (batch, 2, 8 * rows, 8 * columns)).astype(np.float32)
    np.testing.assert_allclose(run(session, planes), answers(small, planes), atol=1e-4, rtol=1e-4)


def test_onnx_equals_torch_on_a_thousand_scenes(session, small):  # noqa: F811
    for planes in thousand_scenes():
        np.testing.assert_allclose(run(session, planes), answers(small, planes), atol=1e-4, rtol=0)


def test_onnx_of_an_empty_picture_is_finite(session):
    assert np.isfinite(run(session, np.zeros((1, 2, 32, 32), np.float32))).all()


def test_onnx_says_how_it_is_read(onnx_file):
    told = {prop.key: json.loads(prop.value) for prop in onnx.load(onnx_file).metadata_props}
    assert told["config"]["cellprob_threshold"] == 0.5
    assert told["config"]["widths"] == list(SMALL)
    assert told["metrics"]["map_iou_validation"] == 0.61


def test_a_wrong_weight_would_be_seen(small, session, tmp_path):  # noqa: F811
    tensors = weights.load_tensors(small)
    tensors["upsample.up.res_up_1.conv.conv_2.full.bias"] += 0.5
    other = weights.save_checkpoint(
        tmp_path / "x.safetensors", tensors, "cellpose_unet", config=weights.read_card(small).config
    )
    (planes,) = planes_of_sizes((1, 64, 64))
    assert np.abs(run(session, planes) - answers(other, planes)).max() > 1e-3


def test_torchscript_comes_back_equal(small, leaving, tmp_path):  # noqa: F811
    out = tmp_path / "model.pt"
    export_model(find_model(small), "torchscript", out)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch advises torch.export
        told = {"cellkit.json": ""}
        loaded = torch.jit.load(out, _extra_files=told)
    assert json.loads(told["cellkit.json"])["config"]["min_area_px"] == 12
    for planes in planes_of_sizes(*SIZES):
        with torch.no_grad():
            assert torch.equal(loaded(torch.from_numpy(planes)), leaving.network(torch.from_numpy(planes)))
    assert str(plain_unet.__file__).encode() not in out.read_bytes(), "a path of this machine"


@pytest.mark.slow
def test_a_program_of_torch_comes_back_equal(small, leaving, tmp_path):  # noqa: F811
    out = tmp_path / "model.pt2"
    export_model(find_model(small), "torch-export", out)
    loaded = torch.export.load(out).module()
    for planes in planes_of_sizes(*SIZES):
        with torch.no_grad():
            assert torch.equal(loaded(torch.from_numpy(planes)), leaving.network(torch.from_numpy(planes)))
    assert str(plain_unet.__file__).encode() not in out.read_bytes(), "a path of this machine"


def test_of_a_model_whose_images_had_their_own_diameters_the_page_names_no_scale_for_all(tmp_path):
    for whose, scale in (("batch", True), ("image", False)):
        export_model(
            find_model("starter_light", {"diameter_px": 40.0, "diameter_of": whose}), "onnx", tmp_path / "m.onnx"
        )
        page = " ".join((tmp_path / "m.md").read_text(encoding="utf-8").split())
        assert ("those pictures are scaled by 0.75" in page) == scale
        assert ("scaled by 30 over the diameter of its own cells: measure that of each picture" in page) != scale


# ---- from a picture to masks, as the page beside the file says --------------------------------------------------------
def test_masks_made_by_the_page_are_those_of_cellkit(drawn, tmp_path):
    """Scale, percentiles, frame, network, thresholds: step by step as written, with onnxruntime and cellpose alone."""
    import cv2

    model = find_model("starter_light", {"diameter_px": 40.0, "cellprob_threshold": 0.5})
    export_model(model, "onnx", tmp_path / "model.onnx")
    page = (tmp_path / "model.md").read_text(encoding="utf-8")
    assert "cells are 30 px wide" in page and "scaled by 0.75" in page and "Put 16 px of zeros" in page
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    for k in range(3):
        image = drawn.image(k)
        planes = []
        for channel in (1, 2):
            low, high = np.percentile(image[..., channel], (1, 99))
            plane = (image[..., channel].astype(np.float32) - low) / (high - low)
            planes.append(cv2.resize(plane.astype(np.float32), (96, 96), interpolation=cv2.INTER_AREA))
        framed = np.pad(np.stack(planes), ((0, 0), (16, 16), (16, 16)))
        maps = run(session, framed[None])[0][:, 16:-16, 16:-16]
        names = {"maps": maps, "height": 128, "width": 128}
        with torch.sparse.check_sparse_tensor_invariants(enable=False):
            exec(code, names)
        (ours,) = model.load()([image])
        from cellkit.cells.instances import Instances

        theirs = Instances.from_labels(names["masks"].astype(np.int32))
        assert len(theirs) == len(ours) > 3
        pairs = overlaps(ours, theirs)
        assert set(pairs.truth[pairs.iou > 0.8]) == set(range(len(ours))), (
            "the outline alone differs: here it is smooth"
        )


# ---- refusals -------------------------------------------------------------------------------------------------------
def test_what_is_no_network_from_picture_to_maps_is_refused(tmp_path, small):  # noqa: F811
    path = weights.save_checkpoint(
        tmp_path / "maskrcnn.safetensors", {}, "maskrcnn_torchvision", classes=("HEK",), config={"fpn_channels": 16}
    )
    with pytest.raises(UserError, match="Mask R-CNN, which cannot leave in this format: crops of the boxes"):
        export_model(find_model(path), "onnx", tmp_path / "m.onnx")
    with pytest.raises(UserError, match="it has no network"):
        export_model(find_model("threshold"), "bioimageio", tmp_path / "m.zip")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["maskrcnn.json", "maskrcnn.safetensors"]


@pytest.mark.parametrize("kind", [kind for kind, suffix in FORMATS.items() if suffix])
def test_a_file_of_another_ending_is_refused(kind, small, tmp_path):  # noqa: F811
    with pytest.raises(UserError, match=f"does not end with {FORMATS[kind]}"):
        export_model(find_model(small), kind, tmp_path / "model.bin")
    assert not list(tmp_path.iterdir())


def test_nothing_but_an_export_is_written_over(small, tmp_path):  # noqa: F811
    model = find_model(small)
    (tmp_path / "README.md").write_text("of mine")
    with pytest.raises(UserError, match="README.md, where the page of the export goes, is another text"):
        export_model(model, "torchscript", tmp_path / "README.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    for _ in range(2):
        export_model(model, "onnx", tmp_path / "again.onnx")
    for kind, name in (("bioimageio", "data.zip"), ("onnx", "mine.onnx"), ("torch-export", "mine.pt2")):
        (tmp_path / name).write_bytes(b"of mine")
        with pytest.raises(UserError, match=f"{name} is there and no earlier export"):
            export_model(model, kind, tmp_path / name)
        assert (tmp_path / name).read_bytes() == b"of mine"
    own = tmp_path / "cyto.pt"
    torch.save(weights.load_tensors(small), own)
    before = own.read_bytes()
    with pytest.raises(UserError, match="cyto.pt is the model that is to be exported"):
        export_model(find_model(own), "torchscript", own)
    assert own.read_bytes() == before


@pytest.mark.parametrize(
    ("kind", "given"), [("onnx", {"licence": "MIT"}), ("onnx", {"authors": ["A"]}), ("huggingface", {"authors": ["A"]})]
)
def test_a_licence_or_author_that_would_not_go_along_is_refused(kind, given, small, tmp_path):  # noqa: F811
    with pytest.raises(UserError, match=f"{kind} has no place for --{next(iter(given)).rstrip('s')}"):
        export_model(find_model(small), kind, tmp_path / f"m{FORMATS[kind]}", **given)
    assert not list(tmp_path.iterdir())


def test_a_diameter_that_is_found_for_images_cannot_leave(small, tmp_path):  # noqa: F811
    for kind, name in (("onnx", "m.onnx"), ("huggingface", "hub")):
        with pytest.raises(UserError, match="diameter_px: auto is found for the images at hand"):
            export_model(find_model(small, {"diameter_px": "auto"}), kind, tmp_path / name)


def test_the_command(said, small, tmp_path):  # noqa: F811
    out = tmp_path / "model.onnx"
    code, text, err = said("export", small, "--format", "onnx", "-o", out, "--set", "min_area_px=33")
    assert (code, err) == (0, "")
    assert text.splitlines()[0] == f"{out}: cellpose_tuned, planes (B, 2, H, W) -> maps (B, 3, H, W)"
    assert "smaller than 33 px" in (tmp_path / "model.md").read_text()
    code, _, err = said("export", small, "--format", "onx", "-o", out)
    assert code == 2 and "'onx' is no format of a model (did you mean 'onnx'?)" in err


def test_the_page_of_another_export_is_not_replaced(small, tmp_path):  # noqa: F811
    export_model(find_model(small, {"cellprob_threshold": 1.0}), "onnx", tmp_path / "m.onnx")
    page = (tmp_path / "m.md").read_text()
    with pytest.raises(UserError, match="is that of another export"):
        export_model(find_model(small, {"cellprob_threshold": -2.0}), "torchscript", tmp_path / "m.pt")
    assert (tmp_path / "m.md").read_text() == page and not (tmp_path / "m.pt").exists()
    export_model(find_model(small, {"cellprob_threshold": 2.0}), "onnx", tmp_path / "m.onnx")
    assert (tmp_path / "m.md").read_text() != page, "its own is written anew"


# ---- a model of a run, whose files were converted -----------------------------------------------------------------------
@pytest.fixture(scope="module")
def of_run(tmp_path_factory) -> tuple[str, Path]:
    """A run whose files are RGB pictures, red nuclei and green cytoplasm, resized by a half; and a folder of such files."""
    root = tmp_path_factory.mktemp("of_run")
    run = Run(root / "demo")
    channels = {"channels": {"nuclei": "red", "cytoplasm": "green"}, "scale": 0.5}
    stage = run.start("01_convert", ConvertConfig(**channels))
    stage.done(records=write_records(stage.path("records.csv"), []))
    stage = run.start("03_finetune_cellpose", FinetuneConfig())
    tuned = weights.copy_checkpoint(find_weights("starter_light"), stage.folder / "cellpose_tuned")
    card = json.loads(tuned.with_suffix(".json").read_text())
    card["config"] |= {"diameter_px": 15.0, "min_area_px": 20}
    tuned.with_suffix(".json").write_text(json.dumps(card))
    stage.done(cellpose_checkpoint=tuned, cellpose_base_checkpoint=tuned, cellpose_tuned_checkpoint=tuned)
    style = FieldStyle(size_px=(160, 192), diameter_px=30.0)
    nuclei, cytoplasm = expose(draw_field(("HEK",), style, [0]), style, [0, 1])
    scaled = [(255 * (plane / plane.max())).astype(np.uint8) for plane in (nuclei, cytoplasm)]
    write_png(root / "files/a.png", np.dstack([*scaled, np.zeros_like(scaled[0])]))
    return f"{run.folder}:cellpose_tuned", root / "files"


def test_a_run_s_model_that_left_finds_the_same_in_files_as_they_come(of_run, tmp_path, monkeypatch):
    monkeypatch.setattr("cellkit.export.bioimageio.check_package", lambda path: "nobody")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    name, files = of_run
    for chosen in ({}, {"diameter_px": 34.0}):
        model = find_model(name, chosen)
        export_model(model, "huggingface", tmp_path / "hub")
        export_model(model, "bioimageio", tmp_path / "model.zip")
        found = predict_files(model, [files], tmp_path / "run.json")
        assert found.cells > 3
        for left in (tmp_path / "hub/model.safetensors", tmp_path / "model.zip"):
            predict_files(find_model(left), [files], tmp_path / "left.json")
            ours, theirs = read_coco(tmp_path / "run.json"), read_coco(tmp_path / "left.json")
            assert ours.instances == theirs.instances, left
    assert "nuclei = red, cytoplasm = green, resized by 0.5" in (tmp_path / "hub/README.md").read_text()


def test_the_page_of_a_run_s_model_counts_in_px_of_the_files_and_names_their_channels(of_run, tmp_path):
    for chosen, diameter in (({}, "30"), ({"diameter_px": 34.0}, "34")):
        export_model(find_model(of_run[0], chosen), "onnx", tmp_path / "m.onnx")
        page = " ".join((tmp_path / "m.md").read_text(encoding="utf-8").split())
        assert f"cells of the training are {diameter} px wide" in page and "smaller than 80 px" in page
        assert "nuclei = red, cytoplasm = green" in page and "percentiles 0.3 and 99.8 became 0 and 255" in page


@pytest.mark.parametrize(
    "told",
    [{"channels": {"nuclei": [["a"]]}}, {"scale": 1e9}, {"limits": {"red": [0]}}, {"made": "/"}, [1], {"axes": 3}],
)
def test_a_conversion_in_a_card_of_others_is_checked(small, tmp_path, told):  # noqa: F811
    path = weights.copy_checkpoint(small, tmp_path / "m")
    card = json.loads(path.with_suffix(".json").read_text())
    card["config"]["conversion"] = told
    path.with_suffix(".json").write_text(json.dumps(card))
    with pytest.raises(UserError, match="the conversion of files that comes with a model has "):
        find_model(path)


def test_a_file_of_models_is_said_to_be_of_several(said, tmp_path):
    (tmp_path / "best.yaml").write_text("fuse: {models: [starter, starter_light]}")
    (tmp_path / "run/folds/of_1/1").mkdir(parents=True)
    for name in (tmp_path / "best.yaml", f"{tmp_path / 'run/folds/of_1'}:cellpose_tuned"):
        code, _, err = said("export", name, "--format", "huggingface", "-o", tmp_path / "hub")
        assert code == 2 and "is made of several models" in err and "kaggle-bundle" in err
