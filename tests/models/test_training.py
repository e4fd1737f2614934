"""The loop: best weights kept, killed trainings resume to the same end, a loss that is not finite stops and harms nothing."""

from __future__ import annotations

import csv
import math
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cellkit.errors import UserError
from cellkit.models.averaging import Average
from cellkit.models.training import Plan, fit, plan_of, random_state_kept
from cellkit.models.training_state import History, State


def line_model() -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(1, 1)


def loss_of(model):
    def loss_at(step: int) -> torch.Tensor:
        x = torch.from_numpy(np.random.default_rng(step).normal(size=(16, 1)).astype(np.float32))
        return ((model(x) - (3 * x - 1)) ** 2).mean()

    return loss_at


def score_of(model):
    return lambda: -abs(float(model.weight) - 3) - abs(float(model.bias) + 1)


PLAN = Plan(steps=60, eval_every=20, learning_rate=0.2, warmup_steps=5)


def test_learns_and_writes_history(tmp_path):
    model = line_model()
    history = fit(model, loss_of(model), score_of(model), PLAN, tmp_path, "a")
    assert history.stopped == "steps done" and history.best_score > -0.5
    rows = list(csv.DictReader((tmp_path / "history.csv").read_text().splitlines()))
    assert [int(row["step"]) for row in rows] == [0, 20, 40, 60]
    assert float(rows[-1]["loss"]) < float(rows[1]["loss"])


def test_rate_warms_up_and_falls():
    rates = [PLAN.rate(step) for step in range(60)]
    assert rates[0] == pytest.approx(0.04) and max(rates) == pytest.approx(0.2) and rates[-1] < 0.01


def test_best_weights_are_left_in_the_model(tmp_path):
    model = line_model()
    values = iter([0.1, 0.9, 0.2, 0.3])
    kept = {}

    def score():
        value = next(values)
        kept[value] = model.weight.detach().clone()
        return value

    history = fit(model, loss_of(model), score, PLAN, tmp_path, "a")
    assert history.best_step == 20
    assert torch.equal(model.weight, kept[0.9]) and not torch.equal(model.weight, kept[0.3])


def test_early_stop(tmp_path):
    model = line_model()
    plan = Plan(steps=1000, eval_every=10, patience=2, learning_rate=0.01)
    values = iter([0.5, 0.6, 0.1, 0.1])
    history = fit(model, loss_of(model), lambda: next(values), plan, tmp_path, "a")
    assert history.stopped == "no better score in 2 evaluations" and history.rows[-1]["step"] == 30


def test_a_long_training_says_where_it_is_between_two_scores(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("cellkit.models.training.LOG_EVERY_S", -1.0)
    model = line_model()
    fit(model, loss_of(model), score_of(model), Plan(steps=4, eval_every=4), tmp_path, "a", desc="line")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("line: step 0 of 4, validation score -") and "nan" not in lines[0]
    told = [re.sub(r"\d+\.\d+|\d+(?= s)", "#", line) for line in lines[1:5]]
    assert told == [f"line: step {k} of 4, loss #, # s, about # s left" for k in (1, 2, 3, 4)]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("at", [7, 20, 33])
def test_killed_and_repeated_ends_like_never_killed(tmp_path, monkeypatch, at):
    monkeypatch.setattr("cellkit.models.training.SAVE_EVERY_S", -1.0)  # save after every step
    whole = line_model()
    expected = fit(whole, loss_of(whole), score_of(whole), PLAN, tmp_path / "whole", "a")
    model = line_model()
    real = loss_of(model)

    def dies(step):
        if step == at:
            raise Killed
        return real(step)

    with pytest.raises(Killed):
        fit(model, dies, score_of(model), PLAN, tmp_path / "killed", "a")
    again = line_model()
    history = fit(again, loss_of(again), score_of(again), PLAN, tmp_path / "killed", "a")
    assert torch.equal(again.weight, whole.weight) and torch.equal(again.bias, whole.bias)
    assert [row["score"] for row in history.rows] == [row["score"] for row in expected.rows]


def test_another_fingerprint_begins_anew(tmp_path):
    model = line_model()
    fit(model, loss_of(model), score_of(model), PLAN, tmp_path, "a")
    fresh = line_model()
    history = fit(fresh, loss_of(fresh), score_of(fresh), Plan(steps=5, eval_every=5), tmp_path, "b")
    assert history.rows[0]["step"] == 0 and history.rows[-1]["step"] == 5


def test_finished_training_is_not_repeated(tmp_path):
    model = line_model()
    fit(model, loss_of(model), score_of(model), PLAN, tmp_path, "a")

    def never(step):
        raise AssertionError("trained again")

    again = line_model()
    history = fit(again, never, score_of(again), PLAN, tmp_path, "a")
    assert history.stopped == "steps done" and torch.equal(again.weight, model.weight)


def test_loss_that_is_not_finite_stops_and_keeps_the_last_good(tmp_path):
    model = line_model()
    real = loss_of(model)
    history = fit(model, lambda s: real(s) * (math.nan if s == 25 else 1), score_of(model), PLAN, tmp_path, "a")
    assert history.stopped == "loss not finite at step 26"
    assert torch.isfinite(model.weight).all() and history.best_step == 20


@pytest.mark.parametrize("average_steps", [0, 5])
@pytest.mark.parametrize("factor", [math.nan, 0.0])
def test_statistics_that_overflow_are_not_left_in_the_model(tmp_path, factor, average_steps):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.BatchNorm1d(1))
    kept = {}

    def loss_at(step: int) -> torch.Tensor:
        kept[step] = {name: value.clone() for name, value in model.state_dict().items()}
        x = torch.linspace(-1, 1, 16)[:, None]
        if step == 25:
            with torch.no_grad():
                model(x * 1e30)
            assert not torch.isfinite(model[1].running_var).all()
        return ((model(x) - 3 * x) ** 2).mean() + (factor if step == 25 else 0)

    plan = replace(PLAN, average_steps=average_steps)
    history = fit(model, loss_at, lambda: 0.0, plan, tmp_path, "a", choose=False)
    assert history.stopped == "loss not finite at step 26" and history.best_step == 25
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    if not average_steps:
        assert all(torch.equal(value, kept[25][name]) for name, value in model.state_dict().items())


def test_damaged_state_is_an_error_that_says_what_to_do(tmp_path):
    (tmp_path / "last.safetensors").write_bytes(b"torn")
    model = line_model()
    with pytest.raises(UserError, match="delete it"):
        fit(model, loss_of(model), score_of(model), PLAN, tmp_path, "a")


def test_where_no_score_chooses_the_last_weights_are_left(tmp_path):
    model, steps = line_model(), 60
    values = iter([0.9, 0.8, 0.2, 0.1])
    plan = Plan(steps=steps, eval_every=20, patience=1, learning_rate=0.2, warmup_steps=5)
    history = fit(model, loss_of(model), lambda: next(values), plan, tmp_path / "watched", "a", choose=False)
    assert (history.best_step, history.stopped) == (60, "steps done"), "falling scores neither choose nor stop"
    again = line_model()
    fit(again, loss_of(again), lambda: 1.0 + next(iter([0])), plan, tmp_path / "blind", "a", choose=False)
    assert torch.equal(model.weight, again.weight), "what the score says changes nothing"
    rows = list(csv.DictReader((tmp_path / "watched" / "history.csv").read_text().splitlines()))
    assert [row["kept"] for row in rows] == ["0", "0", "0", "1"]


def test_watched_training_killed_and_repeated_ends_like_never_killed(tmp_path, monkeypatch):
    monkeypatch.setattr("cellkit.models.training.SAVE_EVERY_S", -1.0)
    whole = line_model()
    fit(whole, loss_of(whole), score_of(whole), PLAN, tmp_path / "whole", "a", choose=False)
    model = line_model()

    def killed_at(step):
        if step == 33:
            raise Killed
        return loss_of(model)(step)

    with pytest.raises(Killed):
        fit(model, killed_at, score_of(model), PLAN, tmp_path / "torn", "a", choose=False)
    model = line_model()
    history = fit(model, loss_of(model), score_of(model), PLAN, tmp_path / "torn", "a", choose=False)
    assert history.best_step == 60 and torch.equal(whole.weight, model.weight)


def test_agreement_with_proposals_is_not_called_a_score(tmp_path, capsys):
    model = line_model()
    fit(model, loss_of(model), score_of(model), Plan(steps=2, eval_every=2), tmp_path, "a", called="agreement")
    said = capsys.readouterr().err
    assert "score" not in said and ", agreement " in said and "; best agreement " in said


def test_a_state_taken_up_is_where_and_what_it_was(tmp_path):
    model = torch.nn.Linear(2, 2)
    adam = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    adam.step()
    rows = [{"step": 0, "loss": math.nan, "score": 0.5, "seconds": 0.0}]
    State(model, adam, list(model.parameters()), Average(model, 0), tmp_path, "a").save(1, History(rows), [])
    written = (tmp_path / "history.csv").read_text()
    other = torch.nn.Linear(2, 2, device="meta")  # no GPU is needed to see where the moments lie
    other.load_state_dict = lambda tensors: None  # whose weights cannot be set
    adam = torch.optim.AdamW(other.parameters())
    step, history, _ = State(other, adam, list(other.parameters()), Average(other, 0), tmp_path, "a").resume()
    told = [adam.state[parameter] for parameter in other.parameters()]
    assert {moments[k].device.type for moments in told for k in ("exp_avg", "exp_avg_sq")} == {"meta"}
    assert {float(moments["step"]) for moments in told} == {1.0}, "the count is kept where AdamW keeps it"
    assert step == 1 and history.best_score == -math.inf
    assert history.write(tmp_path / "again.csv").read_text() == written, "a loss that is not known yet stays nan"


def test_a_training_shorter_than_its_warm_up_reaches_its_rate(capsys):
    section = SimpleNamespace(steps=10, eval_every=5, patience=1, learning_rate=1e-3, weight_decay=0.0, warmup_steps=20,
                              warmup_share=1.0, hold_share=0.0, average_steps=0, tensorboard=False)  # fmt: skip
    rates = [plan_of(section, "net").rate(step) for step in range(10)]
    assert max(rates) == pytest.approx(1e-3) and rates[-1] < 0.5e-3 and rates[0] == pytest.approx(2e-4)
    assert "net: warmup_steps is 20, more than the 10 steps: the learning rate rises over 5" in capsys.readouterr().err
    section.warmup_share = 0.2
    rates = [plan_of(section, "net").rate(step) for step in range(10)]
    assert rates[:3] == pytest.approx([5e-4, 1e-3, 1e-3]) and capsys.readouterr().err == "", "two of ten steps"
    section.steps, section.warmup_share = 20, 1.0
    assert [plan_of(section, "net").rate(k) for k in (0, 19)] == pytest.approx([5e-5, 1e-3])
    assert capsys.readouterr().err == "", "as it was"


def test_what_a_person_draws_afterwards_follows_from_their_own_seed():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    with random_state_kept():
        torch.manual_seed(0)
        torch.rand(5)
    assert torch.equal(torch.rand(3), expected)


AVERAGED = Plan(steps=60, eval_every=20, learning_rate=0.2, warmup_steps=5, hold_share=0.5, average_steps=10)


def normed_model() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.BatchNorm1d(1), torch.nn.Linear(1, 1))


def saved_tensors(path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def test_the_average_is_what_the_formula_says_and_holds_the_statistics_of_batch_normalisation():
    model = normed_model().train()
    average, seen = Average(model, 4), []
    assert all(torch.equal(average.mean[key], value) for key, value in average.live.items()), "before the first step"
    for step in range(6):
        model(torch.randn(8, 1) + step)
        with torch.no_grad():
            model[1].weight += 1.0
        average.update()
        seen.append({key: value.clone() for key, value in average.live.items()})
        shares = np.array([0.75 ** (step - k) for k in range(step + 1)])
        for key, value in average.mean.items():
            wanted = sum(share * float(one[key]) for share, one in zip(shares / shares.sum(), seen, strict=True))
            assert float(value) == pytest.approx(wanted, rel=1e-5), (step, key)
    assert {"0.running_mean", "0.running_var", "1.weight"} <= set(average.mean)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with average.shown():
        assert torch.equal(model[0].running_mean, average.mean["0.running_mean"])
        assert not torch.equal(model[1].weight, before["1.weight"])
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items()), "its own again"


@pytest.mark.parametrize("choose", [True, False])
def test_an_averaged_training_scores_and_leaves_the_average_and_goes_on_from_the_weights(tmp_path, choose):
    model, plain = line_model(), line_model()
    shown = []

    def score():
        shown.append(model.weight.detach().clone())
        return float(len(shown))

    fit(model, loss_of(model), score, AVERAGED, tmp_path / "a", "a", choose=choose)
    fit(plain, loss_of(plain), score_of(plain), replace(AVERAGED, average_steps=0), tmp_path / "b", "b", choose=False)
    assert torch.equal(model.weight, shown[-1]) and not torch.equal(model.weight, plain.weight)
    last, other = saved_tensors(tmp_path / "a/last.safetensors"), saved_tensors(tmp_path / "b/last.safetensors")
    assert torch.equal(last["adam.0.exp_avg"], other["adam.0.exp_avg"]), "the same steps were taken"
    assert torch.equal(last["average.weight"], model.weight)


@pytest.mark.parametrize("choose", [True, False])
@pytest.mark.parametrize("at", [3, 20, 41])
def test_an_averaged_training_killed_and_repeated_leaves_the_same_bytes(tmp_path, monkeypatch, at, choose):
    monkeypatch.setattr("cellkit.models.training.SAVE_EVERY_S", -1.0)

    def run(folder, killed_at=None):
        model = normed_model()
        loss = loss_of(model)

        def loss_at(step):
            if step == killed_at:
                raise Killed
            return loss(step)

        try:
            fit(model, loss_at, lambda: -float(model[1].weight.sum()), AVERAGED, tmp_path / folder, "a", choose=choose)
        except Killed:
            return run(folder)
        return {key: value.numpy().tobytes() for key, value in model.state_dict().items()}

    assert run("killed", at) == run("whole")
    last, other = (saved_tensors(tmp_path / name / "last.safetensors") for name in ("killed", "whole"))
    assert all(torch.equal(last[key], other[key]) for key in other) and set(last) == set(other)


def test_moments_come_back_in_the_order_in_memory_of_their_weights(tmp_path):
    model = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    adam = torch.optim.AdamW(model.parameters(), fused=True)
    model(torch.randn(1, 3, 5, 5)).sum().backward()
    adam.step()
    moments = {key: value.clone() for key, value in adam.state[model.weight].items()}
    State(model, adam, list(model.parameters()), Average(model, 0), tmp_path, "a").save(1, History(), [])
    again = torch.optim.AdamW(model.parameters(), fused=True)
    State(model, again, list(model.parameters()), Average(model, 0), tmp_path, "a").resume()
    taken = again.state[model.weight]["exp_avg"]
    assert torch.equal(taken, moments["exp_avg"]) and taken.stride() == model.weight.stride()


def test_parameters_that_are_not_trained_are_not_written_and_come_back(tmp_path, monkeypatch):
    def halves():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(1, 50), torch.nn.Linear(50, 1))
        model[0].requires_grad_(False)
        return model

    monkeypatch.setattr("cellkit.models.training.SAVE_EVERY_S", -1.0)
    plan = Plan(steps=4, eval_every=2, learning_rate=0.1)
    whole = halves()
    fit(whole, loss_of(whole), lambda: 0.5, plan, tmp_path, "a", choose=False)
    from safetensors.torch import load_file

    written = load_file(tmp_path / "last.safetensors")
    assert {key for key in written if key.startswith("model.")} == {"model.1.weight", "model.1.bias"}
    again = halves()
    fit(again, loss_of(again), lambda: 0.5, plan, tmp_path, "a", choose=False)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), whole.parameters(), strict=True))
    fresh = halves()
    fresh[0].requires_grad_(True)
    with pytest.raises(UserError, match="state of another training: 0.bias is missing\ndelete"):
        fit(fresh, loss_of(fresh), lambda: 0.5, plan, tmp_path, "a", choose=False)
