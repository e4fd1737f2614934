"""Models made of models, by name and from files, and predictions fused."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from predict_cases import folder, run_dir, stack, unet  # noqa: F401

from cellkit.cells.dataset import CellDataset
from cellkit.cells.disjoint import resolve_overlaps
from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.errors import UserError
from cellkit.formats.coco import write_coco
from cellkit.formats.coco_reading import read_coco
from cellkit.formats.sides import without_proposed
from cellkit.models import weights as checkpoints
from cellkit.predict.files import predict_files
from cellkit.predict.fuse_files import _refuse_others, fuse_sides
from cellkit.predict.joined import fuse_models, open_model
from cellkit.predict.model import Model, find_model


@pytest.fixture
def floors(tmp_path) -> list[str]:
    """Checkpoints of the threshold of three diameters."""
    import torch

    paths = []
    for px in (20.0, 30.0, 40.0):
        told = {"diameter_px": px, "min_area_px": 15}
        path = tmp_path / f"floor_{px:g}.safetensors"
        checkpoints.save_checkpoint(path, {"diameter_px": torch.tensor([px])}, "threshold", config=told)
        paths.append(str(path))
    return paths


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_models_are_fused_in_a_prediction_and_one_with_itself_is_itself(folder, floors, tmp_path):  # noqa: F811
    predict_files(find_model(floors[1]), [folder], tmp_path / "alone.json")
    predict_files(fuse_models([floors[1]] * 2), [folder], tmp_path / "twice.json")
    predict_files(fuse_models(floors, weights=[0, 1, 0]), [folder], tmp_path / "one.json")
    alone, *same = (read_coco(tmp_path / f"{name}.json") for name in ("alone", "twice", "one"))
    for other in same:
        assert [r.image_id for r in other.records] == [r.image_id for r in alone.records]
        pairs = zip(alone.instances, other.instances, strict=True)
        assert all(
            np.array_equal(resolve_overlaps(a)[0].paint() > 0, b.paint() > 0) and len(a) == len(b) for a, b in pairs
        )
    model = fuse_models(floors)
    assert model.sha256 != fuse_models(floors[:2]).sha256 and model.config["weights"] == [1, 1, 1]
    assert [one["model"] for one in model.config["members"]] == floors


def test_a_file_of_models_is_a_model(floors, tmp_path):
    said = "fuse: {models: [%s, {model: %s, set: {min_area_px: 90}}], weights: [2, 1], iou: 0.6}"
    model = open_model(write(tmp_path / "m.yaml", said % tuple(floors[:2])))
    assert (model.backend, model.weights, model.settings.iou) == ("fuse", (2.0, 1.0), 0.6)
    assert [one.config["min_area_px"] for one in model.members] == [15, 90]
    within = open_model(write(tmp_path / "n.yaml", f"fuse: {{models: [{tmp_path / 'm.yaml'}, {floors[2]}]}}"))
    assert [one.backend for one in within.members] == ["fuse", "threshold"]
    assert [one.config["min_area_px"] for one in open_model(tmp_path / "m.yaml", {"min_area_px": 7}).members] == [7, 7]


def test_all_folds_of_a_run_are_one_model(run_dir, tmp_path):  # noqa: F811
    place = tmp_path / "run/folds/of_2"
    place.mkdir(parents=True)
    for fold in (1, 2):
        (place / str(fold)).symlink_to(run_dir)
    model = open_model(f"{place}:threshold")
    assert [one.name for one in model.members] == [f"{place}/1:threshold", f"{place}/2:threshold"]
    assert model.conversion == find_model(f"{place}/1:threshold").conversion
    with pytest.raises(UserError, match="has no model 'maskrcn'"):
        open_model(f"{place}:maskrcn")


class Fixed(Model):
    """A model that finds the same in every image."""

    def load(self, scale: float = 1.0):
        from cellkit.models.shared.contract import Segmenter

        ids, scores = self.config["classes"], [0.9] * len(self.config["classes"])
        cells = Instances.from_labels(np.array([[1, 2, 3]]) * (np.arange(3) < len(ids)), class_ids=ids, scores=scores)
        return Segmenter(lambda image, left_out: cells, {})


def fixed(name: str, ids: list[int], classes: tuple[str, ...]) -> Model:
    return Fixed(name, "fixed", None, classes, {"classes": ids})


@pytest.fixture
def named(monkeypatch) -> dict[str, Model]:
    """Models found by the names given here."""
    known = {
        "router": fixed("router", [2, 2, 1], ("HEK", "N2a")),
        "silent": fixed("silent", [0], ("HEK", "N2a")),
        "turned": fixed("turned", [1, 2], ("N2a", "HEK")),
        "plain": fixed("plain", [0, 0], ()),
        "rat": fixed("rat", [1], ("rat",)),
    }
    monkeypatch.setattr("cellkit.predict.joined.find_model", lambda name, overrides=None: known[name])
    return known


def classes_found(spec: str) -> list[int]:
    (cells,) = open_model(spec).load()([np.zeros((1, 3, 3), np.uint8)])
    return cells.class_ids.tolist()


def test_an_image_goes_to_the_model_of_its_kind(named, tmp_path):
    said = "route: {by: %s, models: {HEK: turned, N2a: plain}, otherwise: HEK}"
    assert classes_found(write(tmp_path / "a.yaml", said % "router")) == [2, 2], (
        "of a model without classes all are the kind"
    )
    assert classes_found(write(tmp_path / "b.yaml", said % "silent")) == [2, 1], "classes are brought together by name"
    assert open_model(tmp_path / "a.yaml").classes == ("HEK", "N2a")
    said = "route: {by: %s, models: {HEK: plain}, otherwise: HEK}"
    assert classes_found(write(tmp_path / "c.yaml", said % "router")) == [2, 2], "N2a was voted, which has no model"
    assert classes_found(write(tmp_path / "d.yaml", said % "silent")) == [0, 0], "no kind was voted"


def test_fused_models_of_other_class_orders_vote_on_the_same_classes(named, tmp_path):
    path = write(tmp_path / "a.yaml", "fuse: {models: [router, turned], least_models: 0.0}")
    (cells,) = open_model(path).load()([np.zeros((1, 3, 3), np.uint8)])
    found = {int(cells.starts[cells.offsets[k]]): (int(cells.class_ids[k]), float(cells.scores[k])) for k in range(3)}
    assert found == {0: (2, pytest.approx(0.9)), 1: (1, pytest.approx(0.9)), 2: (1, pytest.approx(0.45))}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{}", "wanted one table, fuse or route"),
        ("fuse: {models: []}", "fuse.models: "),
        ("fuse: {models: [router], weight: [1]}", "fuse.weight: "),
        ("fuse: {models: [router, turned], weights: [1]}", "1 weights for 2 models"),
        ("fuse: {models: [router, rat]}", "rat has the class rat, others have HEK, N2a"),
        ("route: {by: router, models: {HEK: plain}, otherwise: N2a}", "route.otherwise is 'N2a'"),
        ("route: {by: router, models: {HeK: plain}, otherwise: HeK}", "route.models has 'HeK' .did you mean 'HEK'"),
        ("route: {by: plain, models: {HEK: plain}, otherwise: HEK}", "plain tells no classes apart"),
        (
            "route: {by: plain, like: nowhere, models: {HEK: plain}, otherwise: HEK}",
            "route.like is 'nowhere', no run folder",
        ),
    ],
)
def test_files_that_say_something_else_are_refused(named, tmp_path, text, problem):
    with pytest.raises(UserError, match=problem):
        open_model(write(tmp_path / "a.yaml", text))


def test_members_that_cannot_be_joined_are_refused(named, run_dir, tmp_path, monkeypatch):  # noqa: F811
    conversions = [find_model(f"{run_dir}:threshold").conversion, None]
    conversions[1] = replace(conversions[0], projection="mean")
    for name, conversion in zip(("router", "turned"), conversions, strict=True):
        named[name] = replace(named[name], conversion=conversion)
    with pytest.raises(UserError, match="converted their files in different ways"):
        fuse_models(["router", "turned"])
    named["plain"].config["diameter_px"] = "auto"
    with pytest.raises(UserError, match="plain: a diameter of auto"):
        fuse_models(["plain", "plain"])


def test_a_kind_is_told_by_style(drawn, unet, tmp_path):  # noqa: F811
    from cellkit.cells.records import write_records

    records = [replace(r, split="train", cell_type=("HEK", "N2a")[k % 2]) for k, r in enumerate(drawn.records)]
    (tmp_path / "run").mkdir()
    write_records(tmp_path / "run/records.csv", records)
    (tmp_path / "run/images").symlink_to(drawn.root / "images")
    said = (
        f"route: {{by: {unet}, like: {tmp_path / 'run'}, models: {{HEK: threshold, N2a: threshold}}, otherwise: HEK}}"
    )
    model = open_model(write(tmp_path / "a.yaml", said))
    for text, problem in (
        (said.replace("N2a:", "rat:"), "route.models has 'rat'"),
        (
            said.replace(f"by: {unet}", f"by: {write(tmp_path / 'b.yaml', 'fuse: {models: [threshold]}')}"),
            "tells no style",
        ),
    ):
        with pytest.raises(UserError, match=problem):
            open_model(write(tmp_path / "c.yaml", text))
    (cells,) = model.load()([drawn.image(0)])
    assert model.classes == ("HEK", "N2a") and len(cells) and set(cells.class_ids.tolist()) in ({1}, {2})


# ---- predictions -----------------------------------------------------------------------------------------------------
def side(names: str, class_names=("HEK", "N2a"), path="a.json", **of) -> CellDataset:
    cells = [Instances.from_labels(np.array([[1, 1, 2]]), **of)] * len(names)
    records = [ImageRecord(name, f"{name}.png", 1, 3) for name in names]
    return CellDataset(records, cells, class_names, ids=list(range(1, len(names) + 1)), path=Path(path))


def test_predictions_are_fused_by_image_and_class_name():
    one, other = (
        side("ab", class_ids=[1, 1], scores=[0.8, 0.6]),
        side("ba", ("N2a",), class_ids=[1, 1], scores=[1.0, 0.2]),
    )
    made = fuse_sides([one, other])
    assert [r.image_id for r in made.records] == ["a", "b"] and made.classes == ("HEK", "N2a")
    assert made.instances[0].class_ids.tolist() == [2, 1] and made.instances[0].scores == pytest.approx([0.9, 0.4])
    assert made.made_by == ["proposed"] * 2 and made.ids == [1, 2]


def test_images_that_not_all_files_have_are_refused_or_left_out():
    one, other = side("abc", class_ids=[1, 2]), side("bcd", class_ids=[1, 2], path="b.json")
    with pytest.raises(
        UserError, match=r"1 image of a.json not in b.json \(a\); 1 image of b.json not in a.json \(d\)"
    ):
        fuse_sides([one, other])
    assert [r.image_id for r in fuse_sides([one, other], common=True).records] == ["b", "c"]
    with pytest.raises(UserError, match="no image is in all of these files"):
        fuse_sides([one, side("x")], common=True)


def test_the_command_fuses_files(said, tmp_path):
    for name, scores in (("a", [0.8, 0.6]), ("b", [0.4, 0.2])):
        made = side("xy", class_ids=[1, 2], scores=scores)
        write_coco(tmp_path / f"{name}.json", made.records, made.instances, made.classes, None, True)
    out = tmp_path / "out.json"
    code, text, _ = said("fuse", f"{tmp_path}/a.json", f"{tmp_path}/b.json", "-o", str(out), "--weights", "3,1")
    assert (code, text) == (0, f"{out}: 2 models fused, 2 images, 4 cells\n")
    assert read_coco(out).instances[0].class_ids.tolist() == [1, 2]
    from cellkit.files import read_json

    assert [row["score"] for row in read_json(out)["annotations"]][:2] == pytest.approx([0.7, 0.5])
    before = (tmp_path / "a.json").read_bytes()
    code, _, err = said("fuse", f"{tmp_path}/a.json", f"{tmp_path}/b.json", "-o", f"{tmp_path}/a.json")
    assert code == 2 and "a.json' is one of the files to fuse" in err and (tmp_path / "a.json").read_bytes() == before
    code, _, err = said("fuse", f"{tmp_path}/a.json", "-o", str(out), "--weights", "3;1")
    assert code == 2 and err.startswith("--weights is '3;1'")
    code, _, err = said("fuse", f"{tmp_path}/a.json", "-o", str(out), "--least-votes", "2")
    assert code == 2 and err.startswith("--least-votes is 2.0")
    code, _, err = said("predict", "threshold", str(tmp_path), "-o", str(out), "--weights", "1")
    assert code == 2 and err.startswith("--weights, --iou, --least-models or --least-votes without --fuse")
    code, _, err = said("predict", "threshold", str(tmp_path), "-o", str(out), "--iou", "0.3")
    assert code == 2 and "without --fuse" in err, "what would change nothing is not taken in silence"


def test_images_that_are_left_out_are_said(said, tmp_path):
    for name, images in (("a", "xyz"), ("b", "yzw")):
        made = side(images, class_ids=[1, 2])
        write_coco(tmp_path / f"{name}.json", made.records, made.instances, made.classes, None, True)
    files = [f"{tmp_path}/{name}.json" for name in "ab"]
    code, _, err = said("fuse", *files, "-o", str(tmp_path / "out.json"), "--common")
    assert code == 0 and all(f"1 image of {path} left out" in err for path in files) and "(x)" in err and "(w)" in err


@pytest.mark.parametrize("own", ["a", "b"])
def test_files_of_models_that_name_themselves_are_refused(tmp_path, own):
    write(tmp_path / "a.yaml", f"fuse: {{models: [threshold, {tmp_path / own}.yaml]}}")
    write(tmp_path / "b.yaml", f"fuse: {{models: [{tmp_path / 'a'}.yaml]}}")
    with pytest.raises(UserError, match="a.yaml is a part of itself"):
        open_model(tmp_path / "a.yaml")


def test_many_images_are_no_more_work_each():
    """With the images used built anew for each, these took minutes."""
    records = [ImageRecord(f"i{k}", f"i{k}.png", 4, 4) for k in range(30_000)]
    data = CellDataset(records, [Instances.empty((4, 4))] * len(records), made_by=["proposed", *[""] * 29_999])
    began = time.process_time()
    _refuse_others(data, data, {k: k for k in range(len(records))}, False)
    assert without_proposed(data, data)[2] == ["i0"] and time.process_time() - began < 5
