"""Adapting with any number of labelled images: who teaches, chooses and judges, and what a kill leaves."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
import brighter

from cellkit.cells.dataset import CellDataset
from cellkit.cells.drawn.others import draw_others
from cellkit.cells.instances import Instances
from cellkit.cells.records import MIXED, ImageRecord
from cellkit.errors import UserError
from cellkit.evaluate.adaptation import adapt, images_that_teach, regime_for
from cellkit.evaluate.folds import fold_settings
from cellkit.evaluate.forgetting import describe_others, score_others
from cellkit.evaluate.quarters import Box, joined, judged_in, quarters, without_quarter
from cellkit.evaluate.untaught import describe_untaught, untaught_lines
from cellkit.evaluate.verdict import UNSEEN, UNSEEN_QUARTER, images_to_decide, keep_if_better, who_judged
from cellkit.models.gate import CROSS_FITTING, IN_QUARTERS, NOBODY, THREE_PARTS, regime_of
from cellkit.models.weights import hashed, load_tensors, read_card


def squares(folder, splits, groups=(), faint=()):
    """Draw bright squares on dark ground, six in each image; those of `faint` images are found by no model of `brighter`."""
    folder.mkdir(parents=True, exist_ok=True)
    records, instances = [], []
    for k, split in enumerate(splits):
        labels = np.zeros((48, 64), np.int32)
        for n, (y, x) in enumerate((y, x) for y in (4, 30) for x in (5, 25, 46)):
            labels[y + k % 3 : y + k % 3 + 8, x : x + 8 + k % 2] = n + 1
        grey = np.where(labels > 0, 20 if k in faint else 200, 20).astype(np.uint8)
        Image.fromarray(np.stack([grey] * 3, axis=-1)).save(folder / f"{k}.png")
        records.append(ImageRecord(f"i{k}", f"{k}.png", 48, 64, split=split, group=groups[k] if groups else ""))
        instances.append(Instances.from_labels(labels))
    return CellDataset(records, instances, ("cell",), folder, list(range(1, len(records) + 1)))


def run(data, folder, **settings):
    brighter.TRAINED.clear()
    return adapt(brighter, data, brighter.TrainSettings(**settings), folder)


SPLITS = ("train",) * 4 + ("val",) * 3 + ("test",)
MANY_VAL = ("train",) * 2 + ("val",) * 3


# ---- who teaches, chooses and judges -------------------------------------------------------------------------------
def regime(train, val, **more):
    records = [ImageRecord(f"{s}{k}", "", 9, 9, split=s) for s, n in (("train", train), ("val", val)) for k in range(n)]
    cells = Instances.from_labels(np.ones((9, 9), int))
    return regime_of(replace(CellDataset(records, [cells] * len(records)), **more))


@pytest.mark.parametrize(
    ("train", "val", "name", "judges", "folds"),
    [(1, 0, IN_QUARTERS, 1, 0), (0, 1, IN_QUARTERS, 1, 0), (1, 1, CROSS_FITTING, 2, 2), (3, 0, CROSS_FITTING, 3, 3),
     (12, 7, CROSS_FITTING, 19, 5), (200, 11, CROSS_FITTING, 211, 5), (0, 0, NOBODY, 0, 0)],
)  # fmt: skip
def test_few_images_judge_what_did_not_see_them(train, val, name, judges, folds):
    found = regime(train, val)
    assert (found.name, len(found.judges), len(found.folds), found.choosers) == (name, judges, folds, ())
    assert not folds or sorted(sum(found.folds, ())) == sorted(found.judges), "each is held back once"
    assert str(found)


def test_from_twelve_validation_images_on_some_choose_and_the_others_judge():
    found = regime(3, 12)
    assert found.name == THREE_PARTS and not set(found.choosers) & set(found.judges) and found.choosers
    assert len(found.choosers) + len(found.judges) == 12 and not found.folds
    assert all(name.startswith("val") for name in (*found.choosers, *found.judges))


def test_images_without_cells_make_no_judges_enough(tmp_path):
    data = squares(tmp_path, ("train",) * 2 + ("val",) * 13)
    empty = [cells if r.split == "train" else cells[:0] for r, cells in zip(data.records, data.instances, strict=True)]
    assert regime_of(data).name == THREE_PARTS and regime_of(replace(data, instances=empty)).name == CROSS_FITTING


def test_judges_whose_well_teaches_are_told(tmp_path):
    data = squares(tmp_path, ("train", "val") * 12)
    wells = data.with_records([replace(r, group=f"well {k // 2}") for k, r in enumerate(data.records)])
    apart = data.with_records([replace(r, group=f"well {k}") for k, r in enumerate(data.records)])
    told = regime_of(wells)
    assert told.near == len(told.judges) and f"{told.near} of them are of a group that teaches too" in str(told)
    assert regime_of(apart).near == regime_of(data).near == 0 and "group that teaches" not in str(regime_of(apart))


def test_proposals_judge_nothing_and_images_without_cells_teach_nothing():
    assert regime(2, 2, made_by=["proposed"] * 4).name == NOBODY
    found = regime(2, 2, made_by=["proposed", "corrected", "truth", "proposed"])
    assert found.judges == ("train1", "val0")
    cells = Instances.from_labels(np.ones((9, 9), int))
    found = regime(1, 2, instances=[cells, Instances.empty((9, 9)), cells])
    assert [set(fold) & {"train0", "val1"} for fold in found.folds] == [{"train0"}, {"val1"}] or len(found.folds) == 2
    assert regime(1, 2, instances=[cells, *[Instances.empty((9, 9))] * 2]).name == IN_QUARTERS


def test_images_with_few_cells_are_named_and_are_the_reason_that_is_told(tmp_path, capsys):
    data = squares(tmp_path / "images", ("train",) * 4)
    few = replace(data, instances=[data.instances[0], *[cells[:2] for cells in data.instances[1:]]])
    adapted = run(few, tmp_path / "out", min_train_masks=3)
    assert adapted.regime.name == IN_QUARTERS
    assert "as one labelled image alone has 3 cells or more (finetune.min_train_masks)" in str(adapted.regime)
    assert "left out, fewer than 3 labelled cells: i1, i2, i3" in capsys.readouterr().err
    two = replace(data, instances=[*data.instances[:2], *[cells[:2] for cells in data.instances[2:]]])
    assert run(two, tmp_path / "two", min_train_masks=3).regime.name == CROSS_FITTING
    assert "left out, fewer than 3 labelled cells: i2, i3" in capsys.readouterr().err
    nobody = regime_of(data, least=7)
    assert (nobody.name, nobody.judges) == (NOBODY, ())
    assert str(nobody) == "nobody judges, as none of 4 labelled images has 7 cells or more (finetune.min_train_masks)"
    assert str(regime_of(data.subset([]))) == "nobody judges, as no person labelled an image"


def test_proposals_of_a_group_that_is_held_back_do_not_teach_meanwhile(tmp_path):
    data = squares(tmp_path / "images", ("train",) * 6, ["a", "a", "b", "b", "a", "c"])
    run(replace(data, made_by=["truth"] * 4 + ["proposed"] * 2), tmp_path / "out")
    assert sorted(brighter.TRAINED[:2]) == ["3: i0 i1 i4 i5", "3: i2 i3 i5"]
    brighter.TRAINED.clear()
    alone = squares(tmp_path / "alone", ("train",) * 3, ["a"] * 3)
    run(replace(alone, made_by=["truth", "truth", "proposed"]), tmp_path / "one")
    assert sorted(brighter.TRAINED[:2]) == ["3: i0 i2", "3: i1 i2"], "a single group is not held back whole"


def test_groups_are_held_back_whole(tmp_path):
    data = squares(tmp_path, ("train",) * 4 + ("val",) * 4, [f"well {k % 3}" for k in range(8)])
    group = {record.image_id: record.group for record in data.records}
    folds = regime_of(data).folds
    assert len(folds) == 3 and all(len({group[name] for name in fold}) == 1 for fold in folds)
    alone = squares(tmp_path, ("train",) * 3, ["well"] * 3)
    assert len(regime_of(alone).folds) == 3, "of a single group images are held back"


# ---- cross-fitting -------------------------------------------------------------------------------------------------
def test_every_image_is_judged_by_what_did_not_see_it_and_one_run_sees_all(tmp_path):
    data = squares(tmp_path / "images", SPLITS)
    adapted = run(data, tmp_path / "out")
    *short, whole = [set(line.split(": ")[1].split()) for line in brighter.TRAINED[:6]]
    names = {record.image_id for record in data.records if record.split != "test"}
    assert [names - seen for seen in short] == [set(fold) for fold in adapted.regime.folds] and whole == names
    assert [line.split(":")[0] for line in brighter.TRAINED] == ["3"] * 5 + ["9"], "a third of the steps, then all"
    assert adapted.verdict.kept == "tuned" and adapted.kept == adapted.tuned and adapted.step == 0.25
    assert float(load_tensors(adapted.kept)["limit"]) == pytest.approx(5 + 0.25 * (0.6 - 5))
    card = read_card(adapted.kept)
    assert card.metrics["regime"] == CROSS_FITTING
    assert set(adapted.regime.judges) == names and card.metrics["judged_by"] == hashed(adapted.regime.judges)
    decision = adapted.decision
    assert json.loads(json.dumps(decision)) == decision and decision["n"] == 7 and decision["low"] > 0
    assert not list((tmp_path / "out").glob("fold_*/*.safetensors")), "what is finished keeps no weights"


def test_what_another_network_starts_from_saw_no_validation_image(tmp_path):
    adapted = run(squares(tmp_path / "images", SPLITS), tmp_path / "out")
    assert adapted.encoder not in (adapted.kept, adapted.base) and adapted.encoder.is_file()
    assert adapted.regime.folds[-1] == ("i4", "i5", "i6"), "validation images are a part of their own"
    assert brighter.TRAINED[4] == "3: i0 i1 i2 i3", "whose run serves, so that no further one is needed"
    assert float(load_tensors(adapted.encoder)["limit"]) == pytest.approx(5 + 0.25 * (0.6 - 5))
    assert read_card(adapted.encoder).backend == "brighter"
    several = run(squares(tmp_path / "several", MANY_VAL), tmp_path / "many")
    assert all(len(fold) == 1 for fold in several.regime.folds), "more than half would leave little to learn from"
    assert several.encoder not in (several.kept, several.base) and brighter.TRAINED[5:] == [
        "9: i0 i1 i2 i3 i4",
        "3: i0 i1",
    ]
    only = run(squares(tmp_path / "others", ("train",) * 3), tmp_path / "more")
    assert only.encoder == only.kept and len(brighter.TRAINED) == 4


def test_a_backend_that_starts_from_nothing_hands_on_no_network_that_saw_validation_images(tmp_path):
    bare = SimpleNamespace(train=brighter.train, load=brighter.load, __name__="bare")
    for splits, runs in ((SPLITS, 6), (MANY_VAL, 7)):
        brighter.TRAINED.clear()
        data = squares(tmp_path / f"images {runs}", splits)
        adapted = adapt(bare, data, brighter.TrainSettings(), tmp_path / f"out {runs}")
        assert adapted.encoder != adapted.kept and len(brighter.TRAINED) == runs
        of_train = f"3: {' '.join(record.image_id for record in data.records if record.split == 'train')}"
        assert of_train in brighter.TRAINED
    only = adapt(bare, squares(tmp_path / "val", ("val",) * 3), brighter.TrainSettings(), tmp_path / "out")
    assert only.encoder is None, "nothing was trained without them"


def test_validation_images_that_taught_get_what_was_found_without_them(tmp_path):
    data = squares(tmp_path / "images", SPLITS)
    adapted = run(data, tmp_path / "out")
    marked = {"i5": Instances.empty((48, 64))}
    found = replace(adapted, unseen={name: each | marked for name, each in adapted.unseen.items()}).predict(data)
    assert set(adapted.unseen["tuned"]) == {f"i{k}" for k in range(7)} == set(adapted.unseen["base"])
    assert [len(cells) for cells in found["tuned"]] == [6, 6, 6, 6, 6, 0, 6, 6]
    path = tmp_path / "decision.json"
    path.write_text(json.dumps(adapted.decision))
    assert who_judged({"decision": path}).endswith(UNSEEN) and "cross-fitting" in who_judged({"decision": path})


@pytest.mark.parametrize(
    ("splits", "killed_at", "runs"),
    [(SPLITS, 0, 6), (SPLITS, 2, 6), (SPLITS, 4, 6), (SPLITS, 5, 6), (MANY_VAL, 5, 7), (MANY_VAL, 6, 7)],
)
def test_killed_and_repeated_it_ends_as_one_never_killed(tmp_path, monkeypatch, splits, killed_at, runs):
    data = squares(tmp_path / "images", splits)
    wanted = run(data, tmp_path / "never")
    train = brighter.train

    def killed(*given):
        if len(brighter.TRAINED) == killed_at:
            raise KeyboardInterrupt
        return train(*given)

    monkeypatch.setattr(brighter, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "out")
    monkeypatch.setattr(brighter, "train", train)
    found = run(data, tmp_path / "out")
    assert len(brighter.TRAINED) == runs - min(killed_at, 5), "finished parts are not run again"
    assert (found.decision, found.judged, found.unseen) == (wanted.decision, wanted.judged, wanted.unseen)
    assert load_tensors(found.kept) == load_tensors(wanted.kept)
    assert load_tensors(found.encoder) == load_tensors(wanted.encoder)


def test_a_part_is_run_again_for_what_changes_its_result_and_for_nothing_else(tmp_path, monkeypatch):
    data = squares(tmp_path / "images", ("train",) * 2)
    run(data, tmp_path / "out")
    assert len(brighter.TRAINED) == 3
    run(data, tmp_path / "out", cache_gb=2.0)
    assert len(brighter.TRAINED) == 1, "the size of a cache changes no result"
    run(data, tmp_path / "out", start=4.9)
    assert len(brighter.TRAINED) == 3, "with other settings everything is"
    run(data.with_records([replace(r, cell_type="a") for r in data.records]), tmp_path / "out", start=4.9)
    assert len(brighter.TRAINED) == 3, "by cell types crops are dealt"
    run(data, tmp_path / "out", start=4.9)
    monkeypatch.setattr("cellkit.evaluate.folds.metadata.version", lambda name: "99")
    run(data, tmp_path / "out", start=4.9)
    assert len(brighter.TRAINED) == 3, "and with another version"


def test_a_gain_that_one_image_has_alone_is_not_kept(tmp_path):
    adapted = run(squares(tmp_path / "images", ("train",) * 4, faint=(1, 2, 3)), tmp_path / "out")
    assert adapted.verdict.kept == "base" and adapted.kept == adapted.encoder == adapted.base
    assert "a gain above" in adapted.verdict.change and adapted.decision["kept"] == "cellpose_base"


def test_without_a_better_step_the_base_stays_and_says_so(tmp_path):
    adapted = run(squares(tmp_path / "images", ("train",) * 3, faint=(0, 1, 2)), tmp_path / "out")
    assert (adapted.step, adapted.verdict.kept) == (0.0, "base") and "no step away" in adapted.verdict.text


def test_where_the_base_is_best_tuned_is_the_whole_step_in_every_image(tmp_path):
    data = squares(tmp_path / "images", ("train", "train", "val"), faint=(1, 2))
    adapted = run(data, tmp_path / "out", start=1.5)
    assert adapted.step == 0 and adapted.verdict.kept == "base", "the others are found by neither"
    assert adapted.judged_steps == (1.0, 1.0, 1.0) and adapted.decision["judged_steps"] == {"1": 3}
    assert "what is called tuned, and scored so, is the whole step" in adapted.decision["tuned_in_words"]
    path = tmp_path / "decision.json"
    path.write_text(json.dumps(adapted.decision))
    assert "is the whole step" in who_judged({"decision": path})


def test_what_is_judged_at_several_steps_says_so(tmp_path):
    adapted = run(squares(tmp_path / "images", SPLITS), tmp_path / "out")
    assert adapted.decision["judged_steps"] == {"0.25": 7} and adapted.decision["tuned_in_words"] == ""
    mixed = replace(adapted, judged_steps=(0.25,) * 5 + (0.0,) * 2)
    assert mixed.decision["judged_steps"] == {"0": 2, "0.25": 5}
    assert "goes 0.25 of the way" in mixed.decision["tuned_in_words"] and "0 (2 times)" in mixed.tuned_in_words


def test_a_backend_without_a_base_is_kept_and_its_validation_scores_are_unseen(tmp_path):
    bare = SimpleNamespace(train=brighter.train, load=brighter.load, __name__="bare")
    adapted = adapt(bare, squares(tmp_path / "images", SPLITS), brighter.TrainSettings(), tmp_path / "out")
    assert (adapted.base, adapted.verdict.kept, adapted.step) == (None, "tuned", 1.0)
    assert set(adapted.models) == {"tuned"} == set(adapted.unseen) and "gain" not in adapted.decision


# ---- three parts, and nobody ---------------------------------------------------------------------------------------
def test_choosers_choose_the_step_and_judges_alone_judge(tmp_path):
    adapted = run(squares(tmp_path / "images", ("train",) * 2 + ("val",) * 14), tmp_path / "out")
    assert len(brighter.TRAINED) == 1 and adapted.regime.name == THREE_PARTS and adapted.step == 0.25
    assert (
        {record.image_id for record in adapted.judge.records}
        == set(adapted.regime.judges)
        == set(adapted.unseen["tuned"])
    )
    assert adapted.verdict.kept == "tuned" and adapted.encoder == adapted.kept
    assert adapted.verdict.gain.n == len(adapted.regime.judges)


@pytest.mark.parametrize("splits", [("val",) * 14, ("train",) * 2 + ("val",) * 14])
def test_without_a_training_cell_it_is_refused(tmp_path, splits):
    data = squares(tmp_path / "images", splits)
    empty = [cells[:0] if r.split == "train" else cells for r, cells in zip(data.records, data.instances, strict=True)]
    with pytest.raises(
        UserError, match="no labelled cell to train on.*\nlabel training images|no training image has more"
    ):
        run(replace(data, instances=empty), tmp_path / "out")


def test_proposals_alone_train_and_the_base_stays(tmp_path):
    data = replace(squares(tmp_path / "images", SPLITS), made_by=["proposed"] * 8)
    adapted = run(data, tmp_path / "out")
    assert (adapted.verdict.kept, adapted.regime.name) == ("base", NOBODY) and len(brighter.TRAINED) == 1


# ---- quarters ------------------------------------------------------------------------------------------------------
def test_one_labelled_image_is_enough_for_a_large_gain(tmp_path):
    adapted = run(squares(tmp_path / "images", ("train",)), tmp_path / "out")
    assert adapted.regime.name == IN_QUARTERS and adapted.verdict.kept == "tuned"
    assert "quarters of one image" in adapted.verdict.sentence and adapted.verdict.gain.units == 1
    assert len(brighter.TRAINED) == 5 and set(adapted.unseen["tuned"]) == {"i0"}
    assert len(adapted.unseen["tuned"]["i0"]) == 6, "the quarters together are the image"


def test_one_corrected_image_among_proposals_is_enough(tmp_path):
    """The first round: the proposals of the other training images teach along, and lie in the run's folder, not in the part's."""
    data = squares(tmp_path / "run", ("train",) * 3)
    data = replace(data, made_by=["corrected", "proposed", "proposed"])
    assert regime_of(data).name == IN_QUARTERS
    adapted = run(data, tmp_path / "run/03")
    assert adapted.verdict.gain is not None
    others, first = data.subset([1, 2]), data.subset([0])
    part = without_quarter(first, 0, quarters(first.instances[0]), others, tmp_path / "run/03/fold_1/images")
    assert np.array_equal(part.image(0), others.image(0)) and part.image(len(part) - 1).size


@pytest.mark.parametrize(
    "middles", [[(20, 20), (60, 60)], [(20, 20), (20, 60)], [(20, 40), (60, 40)], [(14, 14), (14, 66), (66, 14)], []]
)
def test_a_few_cells_are_cut_between(middles):
    labels = np.zeros((80, 80), np.int32)
    for number, (y, x) in enumerate(middles, 1):
        labels[y - 9 : y + 9, x - 9 : x + 9] = number
    cells = Instances.from_labels(labels)
    boxes = quarters(cells)
    assert sum(len(judged_in(box, cells, cells[:0])[0]) for box in boxes) == len(middles), "each is whole in a quarter"
    painted = np.zeros((80, 80), int)
    for box in boxes:
        painted[box.window] += 1
    assert (painted == 1).all()


def test_many_cells_are_dealt_about_evenly_though_none_is_to_be_cut():
    rng = np.random.default_rng(0)
    labels = np.zeros((400, 400), np.int32)
    for number, (y, x) in enumerate(rng.integers(12, 388, (120, 2)), 1):
        labels[y - 9 : y + 9, x - 9 : x + 9] = number
    cells = Instances.from_labels(labels)
    whole = [len(judged_in(box, cells, cells[:0])[0]) for box in quarters(cells)]
    assert min(whole) >= 12 and sum(whole) >= 0.7 * len(cells)


def test_one_cell_cannot_be_held_back(tmp_path):
    data = squares(tmp_path / "images", ("train",))
    with pytest.raises(UserError, match="the one labelled image, i0, has 1 cell, .*\nlabel more"):
        run(replace(data, instances=[data.instances[0][:1]]), tmp_path / "out")


def test_a_quarter_that_is_held_back_is_seen_by_no_training(tmp_path):
    image = squares(tmp_path / "images", ("train",))
    boxes = quarters(image.instances[0])
    area = sum((b.bottom - b.top) * (b.right - b.left) for b in boxes)
    assert area == 48 * 64, "the quarters are the whole image"
    for held, box in enumerate(boxes):
        part = without_quarter(image, held, boxes, image.subset([]), tmp_path / f"{held}")
        pixels = sum(record.height_px * record.width_px for record in part.records)
        assert pixels == area - (box.bottom - box.top) * (box.right - box.left)
        for k in range(len(part)):
            picture, cells = part[k]
            assert np.array_equal(picture[..., 0] > 100, cells.paint() > 0), "labels lie where the cells are"


def test_a_cell_that_a_cut_goes_through_counts_nowhere():
    truth = Instances.from_labels(np.kron(np.arange(1, 26).reshape(5, 5), np.ones((6, 6), int)))
    boxes = [Box(top, top + 15, left, left + 15) for top in (0, 15) for left in (0, 15)]
    judged = [judged_in(box, truth, truth) for box in boxes]
    whole = [len(own) for own, _ in judged]
    assert all(own == found for own, found in judged) and 0 < sum(whole) < 25
    nothing = [judged_in(box, truth[:0], truth)[1] for box in boxes]
    assert sum(map(len, nothing)) == 25 == len(joined(boxes, [truth] * 4)), (
        "what covers no true cell counts where it is"
    )


HALVES = [Box(0, 9, 0, 10), Box(0, 9, 10, 20)]


@pytest.mark.parametrize(
    ("left", "right", "wanted"),
    [
        ((6, 13), (7, 14), 1),  # each run sees the middle in its own half: once, not twice
        ((7, 14), (6, 13), 1),  # each sees it in the other's: not lost
        ((7, 13), (6, 13), 1),  # one middle on the cut itself
        ((3, 9), (11, 17), 2),  # two cells
        ((11, 17), (3, 9), 0),  # what neither run was asked about
        ((7, 14), None, 0),  # nor where the run whose half it is sees nothing
        ((4, 12), (8, 16), 2),  # two that meet: no pixel counts twice
    ],
)  # fmt: skip
def test_a_cell_on_a_cut_counts_once(left, right, wanted):
    founds = [Instances.from_boxes([] if x is None else [[x[0], 2, x[1] - x[0], 5]], (9, 20)) for x in (left, right)]
    found = joined(HALVES, founds)
    assert len(found) == wanted and found.paint().astype(bool).sum() == found.areas_px.sum()
    assert len(joined(HALVES, founds[::-1])) == len(joined([*HALVES[::-1]], founds))


def test_quarters_are_told_as_such_and_choose_nothing(tmp_path):
    data = squares(tmp_path / "images", ("val",) * 3, faint=(1, 2))
    data = replace(data, instances=[data.instances[0], *[cells[:0] for cells in data.instances[1:]]])
    adapted = run(data, tmp_path / "out")
    path = tmp_path / "decision.json"
    path.write_text(json.dumps(adapted.decision))
    told = who_judged({"decision": path})
    assert UNSEEN_QUARTER in told and UNSEEN not in told and "saw the others" in told
    deciding = images_to_decide(data, {"decision": path})
    assert [record.image_id for record in deciding.records] == ["i1", "i2"], "no run is without all of that image"
    assert images_to_decide(data, {}) == data
    path.write_text(json.dumps(adapted.decision | {"regime": CROSS_FITTING}))
    assert images_to_decide(data, {"decision": path}) == data


# ---- the rule ------------------------------------------------------------------------------------------------------
def test_rule_numbers_and_what_would_change_are_said(drawn):
    less = [cells[len(cells) // 2 :] for cells in drawn.instances]
    told = str(keep_if_better(drawn, {"base": less, "tuned": drawn.instances})).splitlines()
    assert told[0].startswith("Rule: ") and "n = 6 images" in told[1] and told[2] == "kept: tuned"
    assert "a gain above" in told[3]


def test_a_short_run_takes_a_share_of_the_steps():
    assert fold_settings(brighter.TrainSettings(steps=100)).steps == 33
    assert fold_settings(brighter.TrainSettings(steps=1)).steps == 1


def test_what_was_forgotten_is_scored_on_pictures_that_are_always_the_same(tmp_path):
    one, two = (draw_others(tmp_path / name) for name in "ab")
    assert len(one) == 6 and min(map(len, one.instances)) > 3 and one.instances == two.instances
    assert all(np.array_equal(one.image(k), two.image(k)) for k in range(6))
    path = brighter.calibrate(one, brighter.TrainSettings(start=1.5), tmp_path / "base")
    scores = score_others(brighter, {"base": path, "tuned": path}, one)
    assert scores["base"] == scores["tuned"] and 0 < scores["base"] < 1 and "base 0." in describe_others(scores)


def test_validation_images_teach_where_few_are_labelled_so_their_line_is_not_untaught(tmp_path):
    few, many = (squares(tmp_path / str(n), ("train",) * 3 + ("val",) * n) for n in (2, 12))
    found = []
    for data in (few, many):
        data = data.with_records([replace(r, cell_type="a" if r.split == "train" else "b") for r in data.records])
        taught = images_that_teach(data, regime_of(data, 5, 1, 0))
        found.append(untaught_lines(data.records, taught.records))
    assert found == [{}, {"b": 12}]
    mixed = [replace(data.records[0], cell_type=MIXED)]
    assert untaught_lines(data.records, mixed) == {}
    assert "is not known" in describe_untaught({}, mixed) and "every cell line" in describe_untaught({}, data.records)


@pytest.mark.parametrize("val", [2, 12])
def test_images_with_fewer_cells_than_asked_for_do_not_teach_in_any_regime(val, tmp_path):
    data = squares(tmp_path, ("train",) * 4 + ("val",) * val)
    some = replace(data, instances=[cells[: 2 + k] for k, cells in enumerate(data.instances[:3])] + data.instances[3:])
    settings = brighter.TrainSettings(min_train_masks=4)
    taught = images_that_teach(some, regime_for(some, settings))
    assert {len(cells) for cells in taught.instances} and min(len(cells) for cells in taught.instances) == 4
