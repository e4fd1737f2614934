"""Every convention side by side, each with its reason."""

import json

import numpy as np
import pytest
from score_cases import a_set, spans

from cellkit.cells.instances import Instances
from cellkit.errors import UserError
from cellkit.scores.conventions import compare_conventions, find_conventions

# ---- side by side --------------------------------------------------------------------------------------------------


def test_compare_is_json_with_a_reason_for_every_number():
    truths, founds, records = a_set()
    result = compare_conventions(truths, founds, records, by="cell_type", classes=["HEK", "N2a"], bootstrap=50)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["images"] == 3
    assert set(result["conventions"]) == set(find_conventions())
    assert all(convention["why"] for convention in result["conventions"].values())
    kaggle_result = result["conventions"]["kaggle"]
    assert list(kaggle_result["by_threshold"])[:2] == ["0.50", "0.55"]
    assert len(kaggle_result["interval"]) == 2
    assert kaggle_result["score_pooled"] == pytest.approx(0.5)
    assert set(result["by"]["cell_type"]) == {"HEK", "N2a"}
    assert result["conventions"]["coco"]["by_class"] == {"HEK": pytest.approx(0.5 * 51 / 50.5, abs=0.02), "N2a": 1.0}
    assert result["conventions"]["point"]["accuracy"] == 1


def test_compare_takes_only_what_is_asked_and_says_what_is_unknown():
    truths, founds, _ = a_set()
    assert list(compare_conventions(truths, founds, conventions=["caicedo"])["conventions"]) == ["caicedo"]
    with pytest.raises(UserError, match=r"no convention 'kagle' \(did you mean 'kaggle'\?\)"):
        compare_conventions(truths, founds, conventions=["kagle"])
    with pytest.raises(UserError, match="without records"):
        compare_conventions(truths, founds, by="group")


def test_compare_says_how_many_images_hold_overlapping_predictions():
    truth, found = spans(9, (0, 4)), spans(9, (0, 4), (2, 6))
    assert (
        compare_conventions([truth], [found], conventions=["kaggle"])["conventions"]["kaggle"]["overlapping_images"]
        == 1
    )


def test_a_convention_is_one_file(tmp_path, monkeypatch, capsys):
    """Found, run, given an interval and printed by the command, with no other file touched."""
    import sys

    import cellkit.scores
    from cellkit.commands.main import main

    (tmp_path / "mine.py").write_text(
        "WHY = 'half of what is found'\nON_BOXES = True\n\n\n"
        "def score(images):\n    return {'score': sum(pairs.n_found for pairs in images.pairs) / 8}\n"
    )
    before = list(find_conventions())
    monkeypatch.setattr(cellkit.scores, "__path__", [*cellkit.scores.__path__, str(tmp_path)])
    assert set(find_conventions()) == {*before, "mine"}
    cells = [Instances.from_labels(np.array([[1, 1, 2, 2]])), Instances.from_labels(np.array([[1, 1, 0, 0]]))]
    told = compare_conventions(cells, cells, conventions=["mine", "kaggle"], bootstrap=10)["conventions"]
    assert (list(told), told["mine"]["score"], told["mine"]["why"]) == (
        ["mine", "kaggle"],
        3 / 8,
        "half of what is found",
    )
    assert told["mine"]["interval_of"] == "2 images (few)"
    boxes = [image.as_boxes() for image in cells]
    assert list(compare_conventions(boxes, boxes, bootstrap=0)["conventions"]) == ["mine", "coco", "voc"]
    assert main(["score", "--help"]) == 0
    assert "mine          half of what is found" in capsys.readouterr().out
    del sys.modules["cellkit.scores.mine"]


def test_every_convention_says_what_it_must():
    for name, convention in find_conventions().items():
        assert convention.WHY and isinstance(convention.ON_BOXES, bool) and callable(convention.score), name
