"""Pseudo-labels: which cells and images are taken, and what becomes of them in the next round."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.config.sections import Config, ConvertConfig
from cellkit.errors import UserError
from cellkit.formats.coco import write_coco, write_truth
from cellkit.formats.coco_reading import read_coco
from cellkit.labelling.annotate import choose_labels, with_classes, write_chosen
from cellkit.labelling.pseudo import PseudoSettings, agreement_of, pseudo_labels, write_pseudo
from cellkit.log import collected_warnings
from cellkit.microscope import flags
from cellkit.predict import files
from cellkit.sources.ingest import convert_images, list_images

CLASSES = ("HEK", "N2a")
ROW = np.zeros((4, 20), int)
ROW[:, 1:4], ROW[:, 6:9], ROW[:, 11:14] = 1, 2, 3


def cells(*scores: float, classes=None) -> Instances:
    return Instances.from_labels(ROW, class_ids=classes, scores=[*scores, *[0.0] * (3 - len(scores))][:3])


# ---- what is taken ---------------------------------------------------------------------------------------------------
def test_sure_cells_are_labels_doubtful_ones_are_unknown_others_background():
    labels = pseudo_labels([cells(0.9, 0.5, 0.2)])
    painted = labels.cells.paint(unknown=-1)[0]
    assert [painted[k] for k in (2, 7, 12, 0)] == [1, -1, 0, 0]
    assert (labels.doubtful, labels.why_not) == (1, "") and np.isnan(labels.agreement)


def test_what_only_one_of_two_models_found_is_doubtful_and_models_that_disagree_label_nothing():
    one, two = cells(0.9, 0.9, 0.9), cells(0.9, 0.9, 0.9)[:2]
    labels = pseudo_labels([one, two])
    assert len(labels.cells) == 2 and labels.doubtful == 1 and labels.agreement == pytest.approx(2 / 3)
    assert labels.cells.paint(unknown=-1)[0, 12] == -1
    strict = pseudo_labels([one, two], PseudoSettings(agreement=0.7))
    assert strict.why_not == "the models agree by 0.67 only"
    assert pseudo_labels([cells(0.5, 0.5, 0.5)]).why_not == "no cell has a score of 0.7"


@given(st.lists(st.floats(0, 1), min_size=3, max_size=3), st.floats(0, 1), st.floats(0, 1))
def test_a_cell_is_a_label_or_unknown_or_background(scores, doubtful, score):
    limits = PseudoSettings(score=max(score, doubtful), doubtful=min(score, doubtful))
    labels = pseudo_labels([cells(*scores)], limits)
    unknown = labels.cells.unknown_mask[0] if labels.cells.unknown_px else np.zeros(20, bool)
    for k, place in enumerate((2, 7, 12)):
        sure = scores[k] >= limits.score
        assert bool(labels.cells.paint()[0, place]) == sure
        assert unknown[place] == (not sure and scores[k] >= limits.doubtful)


def test_agreement_is_the_same_whoever_comes_first():
    one, two, three = cells(1, 1, 1), cells(1, 1, 1)[:2], cells(1, 1, 1)[:1]
    assert (
        agreement_of([one, two, three]) == agreement_of([three, one, two]) == pytest.approx((2 / 3 + 1 / 3 + 1 / 2) / 3)
    )
    assert agreement_of([one[:0], one[:0]]) == 1.0


# ---- the next round --------------------------------------------------------------------------------------------------
def picture(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 40, (40, 60), np.uint8)
    pixels[10:20, 10:25] += 150
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def source(tmp_path) -> Path:
    """Labelled images of two lines in wells, each with a test and a validation image."""
    from cellkit.formats.label_images import write_labels

    for k, name in enumerate(("HEK/w1/a", "HEK/w2/b", "HEK/w3/c", "N2a/w4/d", "N2a/w5/e", "N2a/w6/f")):
        split = ("train", "val", "test")[k % 3]
        path = picture(tmp_path / "data" / split / f"{name}.png", k)
        labels = np.zeros((40, 60), np.int32)
        labels[10:20, 10:25] = 1
        write_labels(path.with_name(f"{path.stem}_masks.tif"), labels)
    return tmp_path / "data"


def config(folder: Path | None, **more) -> ConvertConfig:
    told = {"source": "folder", "channels": {"cytoplasm": 0}, "classes": CLASSES, "duplicates": "keep"}
    quality = dict.fromkeys(("out_of_focus", "saturated", "low_contrast", "uneven_light", "debris"), False)
    return ConvertConfig(**told, quality=quality, pseudo=None if folder is None else str(folder), **more)


@pytest.fixture
def pseudo(tmp_path) -> Path:
    """Pseudo-labels of three images: one of a test image's well, one of a validation image's, one of a well of its own."""
    labels = np.zeros((40, 60), int)
    labels[10:20, 10:25], labels[25:30, 40:50] = 1, 2
    found = Instances.from_labels(labels, class_ids=[2, 1], scores=[0.9, 0.5])
    records, files = [], {}
    for k, (group, name) in enumerate((("w3", "x"), ("w5", "y"), ("w9", "z"))):
        files[name] = picture(tmp_path / "more" / f"{name}.png", 50 + k)
        records.append(ImageRecord(name, f"{name}.png", 40, 60, group=group))
    rows = write_pseudo(tmp_path / "pseudo", records, [[found]] * 3, CLASSES, files)
    assert [(row["used"], row["cells"], row["doubtful"], row["cell_type"]) for row in rows] == [
        ("yes", 1, 1, "N2a")
    ] * 3
    return tmp_path / "pseudo"


def test_images_of_wells_that_are_held_back_do_not_teach_unless_it_is_told_plainly(source, pseudo):
    with collected_warnings() as lines:
        items = list_images(config(pseudo), source)
    assert [(one.image_id, one.split, one.cell_type) for one in items if one.is_pseudo] == [
        ("pseudo_z", "train", "N2a")
    ]
    assert any("2 images not used, images of groups that are held back, e.g. pseudo: x.png" in line for line in lines)
    told = list_images(config(pseudo, pseudo_held_out=True), source)
    assert [one.image_id for one in told if one.is_pseudo] == ["pseudo_x", "pseudo_y", "pseudo_z"]
    own = [[(one.image_id, one.split) for one in these if not one.is_pseudo] for these in (told, items)]
    assert own[0] == own[1] and len(own[0]) == 6
    folds = list_images(config(pseudo, folds=2, fold=1), source)
    assert {one.split for one in folds if one.is_pseudo} == {"train"}, "they are in no fold"


def test_pseudo_labels_teach_with_their_classes_and_judge_nothing(source, pseudo, tmp_path):
    made = convert_images(config(pseudo), source, tmp_path / "run", Config(classes=CLASSES)).images
    assert dict(zip([r.image_id for r in made.records], made.made_by, strict=True))["pseudo_z"] == "proposed"
    images = CellDataset(made.records, [Instances.empty(x.shape) for x in made.instances], (), made.root, made.ids)
    truth = {"truth": write_truth(tmp_path / "run/truth.json", made)}
    for use in ("truth", "proposed"):
        chosen = choose_labels(
            images, [Instances.from_labels(np.eye(40, 60, dtype=int))] * len(images), truth, use, 15, classes=CLASSES
        )
        folder = write_chosen(chosen, tmp_path / use, tmp_path / f"{use}.csv", images, CLASSES)
        labelled = read_coco(folder / "labels.json")
        k = labelled.index("pseudo_z")
        own = labelled.instances[k]
        assert labelled.made_by[k] == "proposed" and own.class_ids.tolist() == [2] and own.areas_px.tolist() == [150]
        assert own.unknown_px == 50, "the doubtful cell is neither cell nor background"
        assert "pseudo_z" not in [r.image_id for r in labelled.without_proposed().records]
        classed = with_classes(labelled, "cell_type", CLASSES, truth)
        assert classed.instances[k].class_ids.tolist() == [2]
    assert "pseudo_z" not in (tmp_path / "run/originals.csv").read_text(), "nothing of them is handed in"


def test_pseudo_labels_are_no_labels_that_came_with_the_images(source, pseudo, tmp_path):
    made = convert_images(config(pseudo), source, tmp_path / "run", Config(classes=CLASSES)).images
    images = CellDataset(made.records, [Instances.empty(x.shape) for x in made.instances], (), made.root, made.ids)
    proposals = [Instances.from_labels(np.eye(40, 60, dtype=int))] * len(images)
    truth = {"truth": write_truth(tmp_path / "run/truth.json", made)}
    with collected_warnings() as lines:
        choose_labels(images, proposals, truth, "proposed", 15, classes=CLASSES)
    assert any("6 images came with labels that are not used" in line for line in lines)
    bare = replace(made, made_by=[maker if maker == "proposed" else "" for maker in made.made_by])
    truth = {"truth": write_truth(tmp_path / "run/truth.json", bare)}
    with collected_warnings() as lines:
        choose_labels(images, proposals, truth, "proposed", 15, classes=CLASSES)
    assert not any("came with labels" in line for line in lines)
    with pytest.raises(UserError, match="label.use is truth, but the images came without labels"):
        choose_labels(images, proposals, truth, "truth", 15, classes=CLASSES)


def test_what_a_person_corrected_is_taken_rather_than_pseudo_labels(source, pseudo, tmp_path):
    from cellkit.formats.label_images import write_labels

    made = convert_images(config(pseudo), source, tmp_path / "run", Config(classes=CLASSES)).images
    images = CellDataset(made.records, [Instances.empty(x.shape) for x in made.instances], (), made.root, made.ids)
    truth = {"truth": write_truth(tmp_path / "run/truth.json", made)}
    painted = np.zeros((40, 60), np.int32)
    painted[2:9, 2:9] = 1
    (tmp_path / "fixed").mkdir()
    proposals = [Instances.from_labels(np.eye(40, 60, dtype=int))] * len(images)
    for name, maker, px in (("train_HEK_w1_a", "proposed", 150), ("pseudo_z", "corrected", 49)):
        name = next(record.image_id for record in images.records if name in record.image_id or name == record.image_id)
        write_labels(tmp_path / "fixed" / f"{name}.tif", painted)
        chosen = choose_labels(images, proposals, truth, str(tmp_path / "fixed"), 15, classes=CLASSES)
        (own,) = [one for one in chosen if one.image_id == "pseudo_z"]
        assert (own.made_by, int((own.labels > 0).sum())) == (maker, px)


def test_images_that_the_source_has_itself_and_unknown_groups_are_told(source, tmp_path):
    files = {
        "train_HEK_w1_a": picture(tmp_path / "more/train_HEK_w1_a.png", 1),
        "q": picture(tmp_path / "more/q.png", 2),
    }
    records = [ImageRecord(name, f"{name}.png", 40, 60) for name in files]
    own = next(one.image_id for one in list_images(config(None), source) if one.split == "train")
    records[0] = ImageRecord(own, "train_HEK_w1_a.png", 40, 60)
    found = Instances.from_labels(np.pad(np.ones((9, 9), int), ((0, 31), (0, 51))), class_ids=[1])
    write_pseudo(tmp_path / "p", records, [[found]] * 2, CLASSES, {own: files["train_HEK_w1_a"], "q": files["q"]})
    with collected_warnings() as lines:
        items = list_images(config(tmp_path / "p"), source)
    assert [one.image_id for one in items if one.is_pseudo] == ["pseudo_q"]
    assert any("1 image not used, images of the source itself" in line for line in lines)
    assert any("no group is known of 1 image, e.g. pseudo: q.png" in line for line in lines)


def test_what_cannot_be_used_is_refused(source, pseudo, tmp_path):
    with pytest.raises(UserError, match="which holds no pseudo.json"):
        list_images(config(tmp_path), source)
    with pytest.raises(UserError, match="of 1 images none is taken, e.g. a: no cell has a score of 0.7"):
        write_pseudo(tmp_path / "p", [ImageRecord("a", "a.png", 4, 20)], [[cells(0.1)]], CLASSES, {})
    data = read_coco(pseudo / "pseudo.json")
    write_coco(pseudo / "pseudo.json", data.records, data.instances, ("rat", "N2a"), made_by=["proposed"] * 3)
    with pytest.raises(UserError, match="'rat' is none of the classes"):
        list_images(config(pseudo), source)


def test_the_command_labels_images_by_models_that_agree(said, tmp_path):
    from cellkit.files import read_json

    for k in range(2):
        picture(tmp_path / f"more/w{k}_s1.png", k)
    out = tmp_path / "out"
    flags = [
        "--score",
        "0.2",
        "--doubtful",
        "0.1",
        "--line",
        "HEK",
        "--group-from",
        "(?P<group>w[0-9])",
        "--cytoplasm",
        "0",
    ]
    code, text, err = said(
        "pseudo-label", str(tmp_path / "more"), "--model", "threshold", "--model", "threshold", "-o", str(out), *flags
    )
    assert code == 0, err
    assert "2 of 2 images taken" in text and f"--set convert.pseudo={out}" in text
    images = read_json(out / "pseudo.json")["images"]
    assert [(one["group"], one["cell_type"], one["labels"], one["scene"]) for one in images] == [
        ("w0", "HEK", "proposed", 0), ("w1", "HEK", "proposed", 0)]  # fmt: skip
    assert (out / "images/w0_s1.png").read_bytes() == (tmp_path / "more/w0_s1.png").read_bytes()
    code, _, err = said(
        "pseudo-label", str(tmp_path / "more"), "--model", "threshold", "-o", str(out), "--doubtful", "0.9"
    )
    assert code == 2 and err.startswith("--doubtful is 0.9, more than --score 0.7")


def test_an_interrupted_command_goes_on_and_a_bad_expression_is_refused_before_it(said, tmp_path, monkeypatch):
    picture(tmp_path / "more/w0_s1.png", 0)
    resumed, real, out = [], files.predict_files, tmp_path / "out"

    def stopped_once(model, images, path, **how):
        if len(resumed) == 1:
            resumed.append(-1)
            raise KeyboardInterrupt
        resumed.append((done := real(model, images, path, **how)).resumed)
        return done

    monkeypatch.setattr(files, "predict_files", stopped_once)
    more = ["-o", str(out), "--cytoplasm", "0"]
    command = ["pseudo-label", str(tmp_path / "more"), *["--model", "threshold"] * 2, *more]
    code, _, err = said(*command, "--group-from", "(?P<group>x)")
    assert code == 2 and "fits 0 of 1 images" in err and not resumed
    assert said(*command)[0] == 130
    code, _, err = said(*command)
    assert code == 2 and "none is taken" in err and resumed == [0, -1, 1, 0]
    code, _, err = said(*command, "--score", "0.1", "--doubtful", "0")
    assert code == 0 and resumed[4:] == [1, 1], err
    assert sorted(path.name for path in (out / "found").iterdir()) == ["1.json", "2.json"]


@pytest.mark.parametrize("place", ["more", "more/out", "."])
def test_copies_are_not_written_among_the_images(said, tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "more/w0_s1.png", 0)
    for named in ("more", "more/*.png"):
        if (place, named) != ("more/out", "more/*.png"):  # a pattern that does not reach there
            code, _, err = said("pseudo-label", named, "--model", "threshold", "-o", place, "--cytoplasm", "0")
            assert code == 2 and "lies among the images" in err
    assert [path.name for path in tmp_path.rglob("*")] == ["more", "w0_s1.png"]


def test_what_an_earlier_call_took_goes_where_nothing_is_taken(pseudo):
    with pytest.raises(UserError, match="none is taken"):
        write_pseudo(pseudo, [ImageRecord("a", "a.png", 4, 20)], [[cells(0.1)]], CLASSES, {})
    assert not (pseudo / "pseudo.json").exists()


def test_a_line_that_is_no_class_is_refused_and_one_of_other_letters_is_taken(source, tmp_path):
    found = Instances.from_labels(np.pad(np.ones((9, 9), int), ((0, 31), (0, 51))), class_ids=[1])
    files = {"q": picture(tmp_path / "more/q.png", 2)}
    for line, told in (("hek", "HEK"), ("mixed", "mixed")):
        write_pseudo(tmp_path / "p", [ImageRecord("q", "q.png", 40, 60)], [[found]], CLASSES, files, cell_type=line)
        assert [one.cell_type for one in list_images(config(tmp_path / "p"), source) if one.is_pseudo] == [told]
    write_pseudo(tmp_path / "p", [ImageRecord("q", "q.png", 40, 60)], [[found]], CLASSES, files, cell_type="rat")
    with pytest.raises(UserError, match="'rat' is none of the classes"):
        list_images(config(tmp_path / "p"), source)


def test_groups_named_otherwise_than_in_the_source_are_told(source, tmp_path):
    found = Instances.from_labels(np.pad(np.ones((9, 9), int), ((0, 31), (0, 51))), class_ids=[1])
    files = {"q": picture(tmp_path / "more/q.png", 2)}
    for group, told in (("HEK/w3", True), ("w1", False)):
        write_pseudo(tmp_path / "p", [ImageRecord("q", "q.png", 40, 60, group=group)], [[found]], CLASSES, files)
        with collected_warnings() as lines:
            list_images(config(tmp_path / "p"), source)
        assert any("none of their groups is one of the source's (e.g. 'HEK/w3'" in line for line in lines) == told


def test_what_models_labelled_does_not_say_what_a_fault_is(source, pseudo, tmp_path, monkeypatch):
    learned = []
    real = flags.flag_records

    def noting(measured, learned_from, **more):
        learned.append(list(learned_from))
        return real(measured, learned_from=learned_from, **more)

    monkeypatch.setattr(flags, "flag_records", noting)
    for folder in (None, pseudo):
        made = convert_images(config(folder), source, tmp_path / f"run{len(learned)}", Config(classes=CLASSES)).images
    assert sum(r.split == "train" for r in made.records) == 3, "two of the source, one that models labelled"
    assert sum(learned[0]) == sum(learned[1]) == 2


@pytest.mark.parametrize(("made_by", "flag"), [("", ""), ("truth", "copy")])
def test_of_copies_a_competitions_own_test_images_alone_may_teach(made_by, flag, monkeypatch):
    """Labelled by a model to teach: a copy of a test image without labels stays, others give way as ever."""
    names = {"own": "train", "test": "test", "val": "val", "p_test": "train", "p_val": "train"}
    records = [ImageRecord(name, f"{name}.png", 8, 8, split=split) for name, split in names.items()]
    makers = ["truth", made_by, "truth", "proposed", "proposed"]
    images = CellDataset(records, [Instances.empty((8, 8))] * 5, made_by=makers)
    copies = [flags.Duplicate(*pair, "the same", 1.0) for pair in (("test", "p_test"), ("val", "p_val"))]
    monkeypatch.setattr(flags, "find_duplicates", lambda *given: copies)
    converted = SimpleNamespace(images=images, quality=[], thresholds={})
    for held_out, wanted in ((False, "copy"), (True, flag)):
        settings = config(None, pseudo_held_out=held_out).model_copy(update={"duplicates": "set_aside"})
        found = {r.image_id: r.flags for r in flags.check_quality(converted, "", settings).records}
        assert found == {"own": "", "test": "", "val": "", "p_test": wanted, "p_val": "copy"}
