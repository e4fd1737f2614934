"""A fold whose own training diverged finds nothing; the others go on."""

from pathlib import Path

import brighter
import pytest
from test_adaptation import squares

from cellkit.evaluate.folds import Fold, run_fold
from cellkit.models.weights import NotFinite

NAN = float("nan")


@pytest.mark.parametrize("based", [True, False])
def test_a_fold_whose_training_diverged_finds_nothing(tmp_path, monkeypatch, capsys, based):
    data = squares(tmp_path / "data", ("train",) * 3)
    fold = Fold(data.subset([True, True, False]), data.subset([False, False, True]), tmp_path / "fold_1")
    monkeypatch.setattr(
        brighter, "train", lambda *told: brighter._save(Path(told[-1]) / "brighter_tuned.safetensors", NAN)
    )
    if not based:
        monkeypatch.delattr(brighter, "calibrate")
    found = run_fold(brighter, fold, brighter.TrainSettings(start=1.0))
    cells = {step: len(one[0]) for step, one in found.items()}
    assert cells == ({0.0: 6, 0.25: 0, 0.5: 0, 0.75: 0, 1.0: 0} if based else {1.0: 0})
    assert "fold_1, step 1: its training diverged, which counts as finding nothing" in capsys.readouterr().err


def test_a_base_that_is_not_finite_is_refused(tmp_path, monkeypatch):
    data = squares(tmp_path / "data", ("train",) * 2)
    fold = Fold(data.subset([True, False]), data.subset([False, True]), tmp_path / "fold_1")
    monkeypatch.setattr(brighter, "calibrate", lambda train, config, to: brighter._save(Path(f"{to}.safetensors"), NAN))
    with pytest.raises(NotFinite, match="base.safetensors holds numbers that are not finite"):
        run_fold(brighter, fold, brighter.TrainSettings())
