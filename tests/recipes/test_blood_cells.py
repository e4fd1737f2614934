"""Recipe 31 from a table of boxes to scores, on drawn smears; and the two configurations that come with it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from notebook_cases import execute
from PIL import Image

from cellkit.cells.dataset import OF_BOXES
from cellkit.config.reading import load_config
from cellkit.errors import UserError
from cellkit.formats.coco import write_coco
from cellkit.formats.coco_reading import read_coco
from cellkit.labelling.box_masks import read_boxes
from cellkit.run.notebooks import notebooks_of
from cellkit.run.preflight import check_run

REPO = Path(__file__).parents[2]
SIZE = 96
FEW = {"steps": 2, "eval_every": 2, "batch_size": 1, "crop_px": 32, "encoder": "resnet18", "encoder_depth": 3, "decoder_width": 2,
       "border_weight": 1.0, "seed_threshold": 0.2, "cell_threshold": 0.2, "min_area_px": 5, "average_steps": 0}  # fmt: skip
CONFIG = """
data: smears
classes: [red, white]
leave_out: [label, finetune, coco, maskrcnn]
convert:
  source: box_csv
  channels: {red: red, cytoplasm: green, nuclei: blue}
  duplicates: keep
  quality: {debris: false, uneven_light: false, low_contrast: false, out_of_focus: false, saturated: false}
coco: {class_from: truth}
evaluate: {bootstrap_samples: 10}
"""


def draw_smears(folder: Path, count: int = 5) -> None:
    """Draw smears of round cells with their boxes: red ones, and in each image a larger white one with a dark nucleus."""
    rows = ["image,xmin,ymin,xmax,ymax,label,split"]
    splits = ["train", "train", "train", "val", "test"]
    y, x = np.indices((SIZE, SIZE))
    (folder / "images").mkdir(parents=True)
    for k in range(count):
        rng = np.random.default_rng([31, k])
        image = np.full((SIZE, SIZE, 3), (225, 222, 228), np.uint8) - rng.integers(
            0, 6, (SIZE, SIZE, 3), dtype=np.uint8
        )
        places = [(row, column) for row in (16, 46, 76) for column in (16, 46, 76)]
        for number, (row, column) in enumerate(places):
            is_white = number == k
            radius = 14 if is_white else int(rng.integers(9, 12))
            disc = (y - row) ** 2 + (x - column) ** 2 <= radius**2
            image[disc] = (200, 190, 225) if is_white else (205, 95, 80)
            if is_white:
                image[(y - row) ** 2 + (x - column) ** 2 <= 64] = (70, 40, 140)
            edges = [column - radius, row - radius, column + radius + 1, row + radius + 1]
            fractions = ",".join(f"{max(edge, 0) / SIZE:.6f}" for edge in edges)
            rows.append(f"s{k}.png,{fractions},{'white' if is_white else 'red'},{splits[k]}")
        Image.fromarray(image).save(folder / "images" / f"s{k}.png")
    (folder / "annotations.csv").write_text("\n".join(rows) + "\n")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run of 01, 31 and 06."""
    folder = tmp_path_factory.mktemp("blood")
    draw_smears(folder / "smears")
    config = folder / "smears.yaml"
    config.write_text(f"{CONFIG}\nrecipes: {{blood_cells: {json.dumps(FEW)}}}\n")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        assert [book.name for book in notebooks_of(load_config(config))] == [
            "01_convert",
            "31_blood_cells",
            "06_evaluate_map_iou",
        ]
        assert not check_run(load_config(config), folder / "run").errors()
        with_02 = check_run(load_config(config, {"leave_out": ["finetune", "maskrcnn"]}), folder / "run")
        assert [one.problem.split(",")[0] for one in with_02.errors()] == ["label.use: truth needs outlines"]
        for stage in ("01_convert", "recipes/31_blood_cells", "06_evaluate_map_iou"):
            execute(stage, config, folder / "run")
    return folder / "run"


def test_the_picture_keeps_its_three_colours(run_dir):
    image = np.array(Image.open(run_dir / "images/s0.png"))
    assert image.shape == (SIZE, SIZE, 3) and all(np.ptp(image[..., k]) > 200 for k in range(3))
    red, white = image[46, 46], image[16, 16]
    assert red[0] > red[1] and white[2] > white[0]


def test_boxes_are_the_truth_and_masks_made_of_them_are_nowhere_called_so(run_dir):
    truth = read_boxes(run_dir / "truth.json", run_dir)
    for split in ("val", "test"):
        kept = read_coco(run_dir / f"coco/{split}.json", run_dir, boxes=True)
        assert kept.boxes_only and "proposed" not in kept.made_by
        assert kept.instances == truth.select(split).instances
    assert not (run_dir / "coco/train.json").exists() and not (run_dir / "labels").exists()
    report = (run_dir / "report.html").read_text()
    assert OF_BOXES in report


def test_every_image_and_class_is_counted_beside_its_boxes(run_dir):
    counts = pd.read_csv(run_dir / "box_counts.csv")
    assert counts.groupby(["split", "class_name"])["truth"].max().to_dict() == {
        ("val", "red"): 8, ("val", "white"): 1, ("test", "red"): 8, ("test", "white"): 1,
    }  # fmt: skip
    assert (counts["difference"] == counts["found"] - counts["truth"]).all()
    found = json.loads((run_dir / "predictions/blood_cells.json").read_text())
    assert counts.loc[counts["image_id"] == "all", "found"].sum() == len(found)
    assert {row["image_id"] for row in found} <= {4, 5}
    thresholds = pd.read_csv(run_dir / "thresholds.csv")
    assert thresholds["class_name"].tolist() == ["red", "white"]


def test_06_scores_it_as_any_other_model(run_dir):
    told = json.loads((run_dir / "summary.json").read_text())
    assert {row["model"] for row in told["scores"]} == {"blood_cells"} and told["best"] == "blood_cells"
    assert {row["split"] for row in told["scores"]} == {"val", "test"}


def test_outlines_are_refused_where_boxes_are_wanted(drawn, tmp_path):
    path = write_coco(tmp_path / "truth.json", drawn.records, drawn.instances, drawn.classes)
    with pytest.raises(UserError, match="the cells of this set have outlines\ntrain on the outlines"):
        read_boxes(path, drawn.root)


@pytest.mark.parametrize("name", ["blood", "bccd"])
def test_the_configurations_run_01_the_recipe_and_06(name):
    cfg = load_config(REPO / f"configs/{name}.yaml")
    assert [book.name for book in notebooks_of(cfg)] == ["01_convert", "31_blood_cells", "06_evaluate_map_iou"]
    assert cfg.section("blood_cells").channels == "all" and cfg.section("31_blood_cells").masks == "ellipse"
    assert all(value is not None for value in dict(cfg.convert.channels).values()), "three colours, none dropped"


@pytest.mark.realdata
@pytest.mark.parametrize(("name", "images"), [("blood", {"train": 40, "val": 22, "test": 18}), ("bccd", {"val": 87})])
def test_the_real_sets_are_found_fit_to_run(name, images, data_folder, tmp_path):
    cfg = load_config(REPO / f"configs/{name}.yaml", {"data": str(data_folder)})
    outlook = check_run(cfg, tmp_path / "run")
    assert not outlook.errors(), outlook.to_lines()
    splits = pd.Series([record.split for record in outlook.records]).value_counts().to_dict()
    assert splits | images == splits and set(splits) == {"train", "val", "test"}
