"""TensorBoard reads the numbers of the history, once each, whether or not the training was killed on the way."""

from __future__ import annotations

import csv
import json
import math
import sys
from dataclasses import replace

import pytest
import torch

from cellkit.errors import UserError
from cellkit.models.cellpose_unet import TrainSettings
from cellkit.models.curves import FOLDER
from cellkit.models.training import Plan, fit, plan_of

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of tensorboard's own imports
PLAN = Plan(steps=40, eval_every=10, learning_rate=0.2, warmup_steps=5, curves=True)


class Killed(Exception):
    pass


def train(out, plan=PLAN, killed_at: int | None = None, fingerprint: str = "a"):
    torch.manual_seed(0)
    model, count = torch.nn.Linear(1, 1), iter(range(100))

    def loss_at(step):
        if step == killed_at:
            raise Killed
        x = torch.linspace(-1, 1, 16)[:, None] + step / 100
        return ((model(x) - 3 * x) ** 2).mean()

    def score():
        return next(count) / 10

    return fit(model, loss_at, score, plan, out, fingerprint)


def shown(out) -> dict[str, list[tuple[int, float]]]:
    """Return what TensorBoard shows: name -> (step, value), in order."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / FOLDER))
    events.Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def history(out) -> list[dict[str, float]]:
    with open(out / "history.csv", newline="") as file:
        return [{name: float(value or "nan") for name, value in row.items()} for row in csv.DictReader(file)]


@pytest.mark.parametrize("killed_at", [None, 25])
def test_tensorboard_shows_the_history(tmp_path, killed_at):
    if killed_at:
        with pytest.raises(Killed):
            train(tmp_path, killed_at=killed_at)
    train(tmp_path)
    found, rows = shown(tmp_path), history(tmp_path)
    assert len(rows) == 5
    for name in ("loss", "score"):
        wanted = [(int(row["step"]), row[name]) for row in rows if math.isfinite(row[name])]
        assert [step for step, _ in found[name]] == [step for step, _ in wanted]
        assert [value for _, value in found[name]] == pytest.approx([value for _, value in wanted], abs=1e-5)
    assert [step for step, _ in found["learning rate"]] == [0, 10, 20, 30, 40]
    assert dict(found["learning rate"])[10] == pytest.approx(PLAN.rate(10), rel=1e-5)


def test_another_training_in_the_folder_starts_its_own_curves(tmp_path):
    train(tmp_path, replace(PLAN, steps=20))
    train(tmp_path, replace(PLAN, steps=10), fingerprint="b")
    assert [step for step, _ in shown(tmp_path)["score"]] == [0, 10]


def test_nothing_is_written_unless_asked(tmp_path):
    train(tmp_path, replace(PLAN, curves=False))
    assert not (tmp_path / FOLDER).exists()
    assert "curves" not in repr(PLAN), "a training goes on, whether or not its curves are asked for"


def test_the_setting_asks_for_them():
    config = TrainSettings(tensorboard=True)
    assert plan_of(config, "x").curves and not plan_of(TrainSettings(), "x").curves
    field = json.loads(json.dumps(TrainSettings.model_json_schema()))["properties"]["tensorboard"]
    assert field["hash"] is False, "a stage is not out of date because of it"


def test_without_the_package_it_is_said_before_a_step(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match="needs the package 'tensorboard'"):
        train(tmp_path)
