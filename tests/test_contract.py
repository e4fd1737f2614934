"""Notebooks 02, 03 and 05 with every backend that fits them, and with one of one's own: the example that CONTRIBUTING prints."""

from __future__ import annotations

import ast
import json
import re
import shutil
from pathlib import Path

import pytest
from notebook_cases import execute

from cellkit import models
from cellkit.cells.records import write_records
from cellkit.config.reading import load_config
from cellkit.config.sections import ConvertConfig, LabelConfig
from cellkit.errors import UserError
from cellkit.formats.coco import write_coco
from cellkit.models import backend_names, get_backend, if_able, title_of
from cellkit.predict.kaggle_bundle import open_bundle, write_bundle
from cellkit.predict.model import find_model
from cellkit.run.folder import Run

REPO = Path(__file__).parent.parent
STEPS = {"steps": 1, "eval_every": 1, "batch_size": 1, "crop_px": 64, "val_images": 1}
FEW = {  # settings of a training of one step
    "threshold": {},
    "mine": {"brighter": 1.2},
    "cellpose_unet": STEPS
    | {"folds": 2, "diameter_px": 30, "flow_threshold": 0.0, "cellprob_threshold": 0.0, "min_area_px": 15},
    "maskrcnn_torchvision": STEPS
    | {"start": "scratch", "freeze_backbone": False, "fpn_channels": 16, "score_threshold": 0.5, "nms_threshold": 0.5},
}

FEW["maskrcnn_detectron2"] = FEW["maskrcnn_torchvision"]


@pytest.fixture(scope="module", autouse=True)
def mine(tmp_path_factory):
    """The backend of CONTRIBUTING, a single file in a folder of its own."""
    text = (REPO / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"   ```python\n(   \"\"\"Cells are.*?)   ```", text, re.S)
    folder = tmp_path_factory.mktemp("own")
    (folder / "mine.py").write_text(re.sub(r"^   ", "", example, flags=re.M), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(models, "__path__", [*models.__path__, str(folder)])
        yield folder


def of_section(section: str, name: str) -> dict:
    return {f"{section}.backend": name, **{f"{section}.{key}": value for key, value in FEW[name].items()}}


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "few.yaml"
    path.write_text("classes: [HEK, N2a]\nlabel: {diameter_px: 30}\n")
    return path


def converted(drawn, folder: Path, known) -> Path:
    """Make what notebook 01 makes of drawn images, with the truth of those in `known`."""
    stage = Run(folder).start("01_convert", ConvertConfig(classes=("HEK", "N2a")))
    for record in drawn.records:
        shutil.copy(drawn.root / record.path, stage.path(record.path))
    truth = write_coco(stage.path("truth.json"), known.records, known.instances, drawn.classes)
    records = write_records(stage.path("records.csv"), drawn.records)
    stage.done(records=records, images=stage.path("images"), truth=truth)
    return folder


@pytest.fixture(scope="module")
def labelled(drawn, config, tmp_path_factory) -> Path:
    """A run of notebooks 01 (its outputs alone), 02 and 04."""
    folder = converted(drawn, tmp_path_factory.mktemp("runs") / "few", drawn)
    execute("02_label_with_cellpose", config, folder)
    execute("04_cells_to_coco", config, folder)
    return folder


@pytest.fixture
def run_dir(labelled, tmp_path) -> Path:
    return Path(shutil.copytree(labelled, tmp_path / "run"))


def predicted(run: Run, name: str) -> set[int]:
    """Return the images in which a model found a cell: validation and test images, no others."""
    found = {row["image_id"] for row in json.loads(run.find(f"predictions_{name}").read_text())}
    assert found <= {4, 5, 6} or found <= {1, 2, 3}
    return found


@pytest.mark.parametrize("name", ["cellpose_unet", "mine", "threshold"])
def test_notebook_03_and_its_model_in_02(name, config, run_dir):
    execute("03_finetune_cellpose", config, run_dir, **of_section("finetune", name))
    run = Run(run_dir)
    assert predicted(run, "cellpose_tuned")
    assert ("cellpose_base" in str(sorted(run.find_all("*_checkpoint")))) == (name == "cellpose_unet")
    decision = json.loads(run.find("decision").read_text())
    assert name == "cellpose_unet" or decision["sentence"].startswith("no base to compare with")
    if name != "cellpose_unet":
        model = run.find("cellpose_checkpoint")
        own = {"label.diameter_px": 30} if name == "threshold" else {"label.brighter": 1.3}
        (config.parent / "own.yaml").write_text("classes: [HEK, N2a]\n")
        own |= {"label.backend": name, "label.model": str(model)}
        execute("02_label_with_cellpose", config.parent / "own.yaml", run_dir, **own)


@pytest.mark.parametrize("name", ["maskrcnn_torchvision", "maskrcnn_detectron2", "mine", "threshold"])
def test_notebook_05(name, config, run_dir):
    if name == "maskrcnn_detectron2":
        pytest.importorskip("detectron2", reason="detectron2 is not installed")
    execute("05_train_maskrcnn", config, run_dir, **of_section("maskrcnn", name))
    run = Run(run_dir)
    assert predicted(run, "maskrcnn") or name.startswith("maskrcnn"), "one step teaches a detector nothing"
    assert bool(run.find_all("history_maskrcnn")) == name.startswith("maskrcnn")


def test_what_03_kept_gets_classes_in_05_and_is_a_model_of_the_run(config, run_dir, drawn):
    execute("03_finetune_cellpose", config, run_dir, **of_section("finetune", "mine"))
    execute("05_train_maskrcnn", config, run_dir, **of_section("maskrcnn", "threshold"))
    run = Run(run_dir)
    rows, plain = (json.loads(run.find(f"predictions_cellpose_{name}").read_text()) for name in ("classes", "tuned"))
    assert [row["segmentation"] for row in rows] == [row["segmentation"] for row in plain]
    assert {row["category_id"] for row in rows} == {1, 2}
    model = find_model(f"{run_dir}:cellpose_classes")
    assert (model.backend, model.classes) == ("mine", ("HEK", "N2a"))
    (found,) = model.load()([drawn.image(3)])
    (bare,) = find_model(f"{run_dir}:cellpose_tuned").load()([drawn.image(3)])
    assert found.class_ids.all() and found.with_classes(bare.class_ids) == bare
    assert model.sha256 != find_model(f"{run_dir}:cellpose_tuned").sha256
    write_bundle(f"{run_dir}:cellpose_classes", run_dir.parent / "bundle", "sartorius")
    bundled = open_bundle(run_dir.parent / "bundle")
    assert bundled.sha256 == model.sha256 and list(bundled.load()([drawn.image(3)])) == [found]


def test_without_a_labelled_training_image_04_says_so(drawn, config, tmp_path):
    held = drawn.held_out()
    folder = converted(held, tmp_path / "run", held)
    stage = Run(folder).start("02_label_with_cellpose", LabelConfig(classes=("HEK", "N2a")))
    stage.done(labels=write_coco(stage.path("labels/labels.json"), held.records, held.instances, held.classes))
    with pytest.raises(
        UserError, match="no labelled cell to train on, in no training image\nlabel training images first"
    ):
        execute("04_cells_to_coco", config, folder)


def test_a_file_is_a_backend_and_no_other_file_names_it(mine, config):
    detectors = ["maskrcnn_detectron2", "maskrcnn_torchvision"]
    assert backend_names() == [
        "cellpose_sam",
        "cellpose_unet",
        "coordinate",
        *detectors,
        "mine",
        "threshold",
        "unet_border",
    ]
    assert title_of("mine") == "Brighter than average"
    cfg = load_config(config, {"finetune.backend": "mine", "finetune.brighter": 2})
    assert (cfg.finetune.brighter, cfg.finetune.min_train_masks) == (2.0, 1)
    assert isinstance(cfg.finetune, get_backend("mine").TrainSettings)
    assert if_able(get_backend("mine"), "ceiling", None, None) is None
    for wrong, told in (
        ({"finetune.brighter": 0}, "finetune.brighter is 0 (a whole number), wanted a number > 0 and <= 10"),
        ({"finetune.brigter": 2}, "unknown key 'finetune.brigter' (did you mean 'brighter'?)"),
        ({"finetune.steps": 2}, "unknown key 'finetune.steps' (backend mine has no such setting)"),
    ):
        with pytest.raises(UserError) as caught:
            load_config(config, {"finetune.backend": "mine", **wrong})
        assert told in str(caught.value)


def test_no_backend_imports_another_or_torch_before_it_has_to():
    folder = REPO / "cellkit/models"
    for name in backend_names():
        path = folder / f"{name}.py"
        if not path.is_file():
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        named = {f"{node.module}.{alias.name}" for node in froms for alias in node.names} | {
            node.module for node in froms
        }
        assert not {f"cellkit.models.{other}" for other in backend_names()} & named
        above = ("cellkit.fetch", "cellkit.predict", "cellkit.config", "cellkit.formats")
        assert not [module for module in named if module.startswith(above)], "a path is given, never a name"
        first = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
        first |= {name.name for node in tree.body if isinstance(node, ast.Import) for name in node.names}
        assert not {part.split(".")[0] for part in first if part} & {"torch", "torchvision", "cellpose", "skimage"}
