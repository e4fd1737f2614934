"""What has chosen a checkpoint judges it nowhere; and who chooses follows from the name alone."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.errors import UserError
from cellkit.evaluate.evaluation import decide, rejected_models, unjudged
from cellkit.models.gate import CHOOSE_FROM, choosers, judges
from cellkit.models.shared.inputs import check_max_detections
from cellkit.scores.intervals import Difference


def val_images(count, fields=1, split="val"):
    return [
        ImageRecord(f"i{k}", f"{k}.png", 8, 8, split=split, group=f"well {k // fields}" if fields > 1 else "")
        for k in range(count)
    ]


def data(records):
    return CellDataset(records, [Instances.empty((8, 8))] * len(records), (), Path(), list(range(1, len(records) + 1)))


@pytest.mark.parametrize("count", range(CHOOSE_FROM))
def test_few_images_all_judge(count):
    assert choosers(val_images(count)) == []
    assert len(judges(data(val_images(count)))) == count


@pytest.mark.parametrize("count", [12, 20, 60])
def test_choosers_and_judges_share_no_image(count):
    images = val_images(count)
    chose, judge = set(choosers(images)), {r.image_id for r in judges(data(images)).records}
    assert not chose & judge and chose | judge == {r.image_id for r in images}
    assert len(judge) >= 6 and len(chose) >= 2
    more = set(choosers([*images, ImageRecord("new", "n.png", 8, 8, split="val")]))
    assert len((more - {"new"}) ^ chose) <= (count == 12), (
        "one image more changes no other's part, or one where few choose"
    )


@pytest.mark.parametrize("count", range(CHOOSE_FROM, 40))
def test_every_line_has_images_that_choose_and_that_judge(count):
    images = [replace(r, cell_type="cort" if k < count - 2 else "astro") for k, r in enumerate(val_images(count))]
    chose = np.isin([r.image_id for r in images], choosers(images))
    assert 0 < chose[:-2].sum() < count - 2 and chose[-2:].sum() == 1
    moved = chose != np.isin([r.image_id for r in images], choosers(val_images(count)))
    assert moved.sum() <= 1, "only the part of a line that lacked one changes"
    lone = choosers([*images, ImageRecord("lone", "l.png", 8, 8, split="val", cell_type="shsy5y")])
    assert "lone" not in lone, "the only image of its line judges"


@given(st.lists(st.text("abz_019", min_size=1, max_size=6), min_size=CHOOSE_FROM, max_size=40, unique=True))
def test_a_fifth_to_half_choose_whatever_the_images_are_called(names):
    images = [ImageRecord(name, "x.png", 8, 8, split="val", cell_type="a") for name in names]
    assert len(names) / 5 <= len(choosers(images)) <= len(names) / 2


def test_groups_choose_and_judge_whole():
    images = val_images(60, fields=4)
    chose = set(choosers(images))
    for well in {r.group for r in images}:
        assert len({r.image_id in chose for r in images if r.group == well}) == 1
    assert choosers(val_images(40, fields=8)) == [], "five wells are few, however many fields they have"


def test_test_images_never_choose():
    images = val_images(30, split="test")
    assert len(judges(data(images))) == 30


def test_what_was_not_kept_is_not_handed_in():
    base, tuned = Path("a/cellpose_base.safetensors"), Path("a/cellpose_tuned.safetensors")
    paths = {"cellpose_base_checkpoint": base, "cellpose_tuned_checkpoint": tuned}
    assert rejected_models(paths | {"cellpose_checkpoint": base}) == ["cellpose_tuned"]
    assert rejected_models(paths | {"cellpose_checkpoint": tuned}) == ["cellpose_base"]
    assert rejected_models({}) == [] and rejected_models(paths) == []
    table = pd.DataFrame({"model": ["cellpose_base", "cellpose_tuned"], "split": "val", "score": [0.5, 0.6]})
    assert decide(table, "best", "val") == "cellpose_tuned"
    assert decide(table, "best", "val", ["cellpose_tuned"]) == "cellpose_base"
    assert decide(table, "cellpose_tuned", "val", ["cellpose_tuned"]) == "cellpose_tuned", "named, it is taken"


def test_a_teacher_is_handed_in_only_where_it_is_named():
    table = pd.DataFrame({"model": ["teacher", "cellpose_tuned"], "split": "val", "score": [0.9, 0.6]})
    assert decide(table, "best", "val") == "cellpose_tuned", "corrected labels began as the teacher's"
    assert decide(table, "teacher", "val") == "teacher"
    assert unjudged(["teacher", "maskrcnn"], "best") == "maskrcnn" and unjudged(["teacher"], "best") == "teacher"


@pytest.mark.parametrize("count", [1, 2, 4, 7, 12, 20])
def test_the_whole_rule_seldom_keeps_a_model_that_is_no_better(count):
    rng, trials = np.random.default_rng(count), 1000
    images = val_images(count)
    chose = np.isin([r.image_id for r in images], choosers(images))
    shared, own = rng.normal(0, 0.03, (trials, 1, count)), rng.normal(0, 0.03, (trials, 6, count))
    gains = np.sqrt(0.5) * (shared + own)
    picked = gains[:, :, chose].mean(axis=2).argmax(axis=1) if chose.any() else np.full(trials, 5)
    judged = gains[np.arange(trials), picked][:, ~chose]
    n = judged.shape[1]
    errors = judged.std(axis=1, ddof=1) / np.sqrt(n) if n > 1 else np.full(trials, np.nan)
    kept = [
        Difference(mean, np.nan, np.nan, n, n, error).better
        for mean, error in zip(judged.mean(axis=1), errors, strict=True)
    ]
    assert np.mean(kept) <= 0.025 + 2 * np.sqrt(0.025 / trials)


@pytest.mark.parametrize(("limit", "refused"), [(None, False), (3, False), (2, True), (1, True)])
def test_a_limit_below_the_fullest_image_is_refused(limit, refused, capsys):
    labels = np.array([[1, 2, 0], [0, 0, 0]])
    record = ImageRecord("a", "a.png", 2, 3, split="train")
    train = CellDataset([record], [Instances.from_labels(labels)])
    with pytest.raises(UserError, match="max_detections is ., an image has 2 cells") if refused else nullcontext():
        check_max_detections(SimpleNamespace(max_detections=limit), train, train.subset([]))
    assert f"has 2 cells; max_detections is {limit or 'not set'}" in capsys.readouterr().err


def test_without_such_a_setting_there_is_no_limit():
    check_max_detections(SimpleNamespace(), CellDataset([], []))
