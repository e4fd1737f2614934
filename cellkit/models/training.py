"""The training loop every torch backend shares: best checkpoint by a validation score, early stop, resume, NaN guard.

A training is a function of (start weights, data, plan, seed) and of the step number: batches are drawn from the step
number, so that a run that was killed and repeated takes the same steps as one that was not.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellkit.log import LOG
from cellkit.models.averaging import Average
from cellkit.models.curves import Curves
from cellkit.models.training_state import History, State

if TYPE_CHECKING:
    from cellkit.models.shared.contract import Schedule

SAVE_EVERY_S = 60.0
LOG_EVERY_S = 15.0
STATISTICS = ("running_mean", "running_var")  # that batch normalisation keeps, by the end of their names


@dataclass(frozen=True)
class Plan:
    """How long and how fast.

    Parameters
    ----------
    steps : int
        Optimizer steps at most.
    eval_every : int
        Steps between validation scores; the score before the first step is measured too.
    patience : int
        Stop after this many scores without a new best; 0 = never.
    learning_rate, weight_decay : float
        Of AdamW; the rate warms up linearly, stays, and falls along a half cosine to 1 % of its height.
    warmup_steps : int
        More than there are steps would never reach the rate: half of the steps are taken then.
    clip_norm : float
        Largest norm of the gradient.
    warmup_share : float
        Of the steps that the rate may rise over at most: a short training then has its rate early. At least one step rises.
    hold_share : float
        Of the steps after the warm-up during which the rate stays at its height; 0 = it falls at once.
    average_steps : int
        Over which the weights are averaged, see `cellkit.models.averaging.Average`; 0 = they are not.
    curves : bool
        Whether `cellkit.models.curves.Curves` are written for TensorBoard.

    Examples
    --------
    >>> [round(Plan(4, learning_rate=1.0, warmup_steps=20).rate(step), 3) for step in range(4)]
    [0.5, 1.0, 1.0, 0.505]
    >>> held = Plan(10, learning_rate=1.0, warmup_steps=20, warmup_share=0.2, hold_share=0.5)
    >>> [round(held.rate(step), 2) for step in range(10)]
    [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.86, 0.51, 0.15]
    """

    steps: int
    eval_every: int = 50
    patience: int = 0
    learning_rate: float = 1e-3
    weight_decay: float = 1e-5
    warmup_steps: int = 10
    clip_norm: float = 5.0
    warmup_share: float = 1.0
    hold_share: float = 0.0
    average_steps: int = 0
    curves: bool = field(default=False, repr=False)  # no part of the fingerprint: they change no step

    @property
    def warm_up(self) -> int:
        """Steps over which the rate rises."""
        if self.warmup_share < 1:
            return min(self.warmup_steps, max(1, int(self.warmup_share * self.steps)))
        return self.warmup_steps if self.warmup_steps <= self.steps else self.steps // 2

    def rate(self, step: int) -> float:
        """Return the learning rate of step 0, 1, ..."""
        if step < self.warm_up:
            return self.learning_rate * (step + 1) / self.warm_up
        held = self.warm_up + int(self.hold_share * (self.steps - self.warm_up))
        along = max(0, step - held) / max(1, self.steps - held)
        return self.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * along)))


def plan_of(config: Schedule, desc: str) -> Plan:
    """Return the plan in a section of the configuration; say where it is too short for its warm-up."""
    plan = Plan(
        steps=config.steps,
        eval_every=config.eval_every,
        patience=config.patience,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup_steps=config.warmup_steps,
        warmup_share=config.warmup_share,
        hold_share=config.hold_share,
        average_steps=config.average_steps,
        curves=config.tensorboard,
    )
    if plan.warm_up < plan.warmup_steps and plan.warmup_share == 1:
        problem = f"{desc}: warmup_steps is {plan.warmup_steps}, more than the {plan.steps} steps"
        LOG.info(f"{problem}: the learning rate rises over {plan.warm_up} of them")
    return plan


def fit(
    model,
    loss_at: Callable,
    score: Callable,
    plan: Plan,
    out: Path,
    fingerprint: str,
    desc: str = "train",
    choose: bool = True,
    called: str = "validation score",
) -> History:
    """Train `model` in place; leave it with the best weights seen, or with the last.

    Where the plan averages the weights, the average is what is scored, kept and left; training goes on from the weights
    themselves.

    Parameters
    ----------
    model : torch.nn.Module
        Parameters with ``requires_grad`` are trained.
    loss_at : callable
        Step number -> scalar loss tensor; draws its batch from the step number alone. A loss that needs no gradient any more
        has left its gradients in the parameters, see `cellkit.models.shared.in_parts.InParts`.
    score : callable
        () -> float, higher is better; whole validation images. Or a float and a mapping, name -> number: what else is to be
        seen in the history, as the overlap of each class.
    out : Path
        Keeps ``last.safetensors`` (resume), ``best.safetensors`` and ``history.csv``.
    fingerprint : str
        Names start weights, data and plan: a state with another fingerprint is not resumed.
    choose : bool
        Whether the score chooses the weights and ends the training early. If not, it is only watched: the images behind it
        then remain fit to judge the result, and the weights of the last step are left.
    called : str
        What the score is, in what is said on the way.

    Returns
    -------
    History
    """
    import torch

    trained = [p for p in model.parameters() if p.requires_grad]
    fused = all(p.device.type in ("cpu", "cuda") for p in trained) or None
    optimizer = torch.optim.AdamW(trained, plan.learning_rate, weight_decay=plan.weight_decay, fused=fused)
    average = Average(model, plan.average_steps)
    state = State(model, optimizer, trained, average, Path(out), fingerprint)
    step, history, losses = state.resume()
    curves = Curves(Path(out), plan.curves, history.rows)
    begun, saved = time.monotonic() - (history.rows[-1]["seconds"] if history.rows else 0.0), time.monotonic()
    logged = time.monotonic()
    if step:
        LOG.info(f"{desc}: resumed at step {step} of {plan.steps}")
    while not history.stopped:
        if (step % plan.eval_every == 0 or step == plan.steps) and (
            not history.rows or history.rows[-1]["step"] < step
        ):
            with average.shown():
                _evaluate(model, score, step, losses, begun, plan, history, state, desc, choose, called)
            curves.add(history.rows[-1], plan.rate(step))
            losses = []
            state.save(step, history, losses)
            logged = time.monotonic()
            continue
        if step >= plan.steps:
            history.stopped = "steps done"
            break
        loss = _step(model, loss_at, optimizer, trained, step, plan)
        if not math.isfinite(loss):
            history.stopped = f"loss not finite at step {step + 1}"
            break
        average.update()
        losses.append(loss)
        step += 1
        if time.monotonic() - logged > LOG_EVERY_S:
            _log_progress(desc, step, plan, sum(losses) / len(losses), time.monotonic() - begun)
            logged = time.monotonic()
        if time.monotonic() - saved > SAVE_EVERY_S:
            state.save(step, history, losses)
            saved = time.monotonic()
    if not choose:
        history.best_step = step
    curves.close()
    state.finish(step, history, best=choose)
    kept = f"best {called.removeprefix('validation ')} {history.best_score:.4f} at step {history.best_step}"
    kept = kept if choose else f"the weights of step {history.best_step} are kept, no image chose them"
    LOG.info(f"{desc}: {history.stopped}; {kept}")
    return history


def fingerprint(network: Any, items: Sequence, plan: Plan, *rest: Any) -> str:
    """Return a hash of the start weights, the data and the plan: what makes a training the same training."""
    import numpy as np

    digest = hashlib.sha256(json.dumps([repr(plan), *map(str, rest)]).encode())
    for value in network.state_dict().values():
        digest.update(value.detach().cpu().numpy().tobytes())
    for item in items:  # arrays
        for array in item:
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _step(model, loss_at, optimizer, trained, step: int, plan: Plan) -> float:
    """Take one optimizer step; return its loss. One that `_loss_of` finds not finite changes nothing."""
    import torch

    for group in optimizer.param_groups:
        group["lr"] = plan.rate(step)
    model.train()
    torch.manual_seed(step)
    optimizer.zero_grad(set_to_none=True)
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]  # what a forward pass changes already
    loss = _loss_of(model, loss_at, trained, step, plan)
    if math.isfinite(loss):
        optimizer.step()
    else:
        for buffer, value in before:
            buffer.copy_(value)
    return loss


def _loss_of(model, loss_at, trained, step: int, plan: Plan) -> float:
    """Return the loss of a step and leave its gradients; NaN where these, the loss or the statistics kept are not finite."""
    import torch

    loss = loss_at(step)
    if not torch.isfinite(loss):
        return math.nan
    if loss.requires_grad:
        loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(trained, plan.clip_norm)
    statistics = [one.flatten() for name, one in model.named_buffers() if name.endswith(STATISTICS)]
    if not torch.isfinite(norm) or (statistics and not torch.isfinite(torch.cat(statistics)).all()):
        return math.nan
    return float(loss.detach())


def _evaluate(
    model, score, step, losses, begun, plan: Plan, history: History, state: State, desc: str, choose, called
) -> None:
    """Score the validation images; where they choose, keep the best weights and decide on an early stop."""
    import torch

    model.eval()
    with torch.no_grad():
        scored = score()
    value, more = scored if isinstance(scored, tuple) else (scored, {})
    value = float(value)
    mean = sum(losses) / len(losses) if losses else math.nan
    row = {
        "step": step,
        "loss": round(mean, 6),
        "score": round(value, 6),
        "seconds": round(time.monotonic() - begun, 1),
        **more,
    }
    history.rows.append(row)
    _log_progress(desc, step, plan, mean, row["seconds"], f", {called} {value:.4f}" if math.isfinite(value) else "")
    if not choose:
        history.best_score, history.best_step = value, step
    elif value > history.best_score:
        history.best_score, history.best_step = value, step
        state.keep_best()
    elif plan.patience:
        since = sum(r["step"] > history.best_step for r in history.rows)
        if since >= plan.patience:
            history.stopped = f"no better score in {since} evaluations"


def _log_progress(desc: str, step: int, plan: Plan, loss: float, seconds: float, score: str = "") -> None:
    """Say how far a training is; before the first step there is no loss, and no telling how long it will take."""
    shown = "" if math.isnan(loss) else f", loss {loss:.3f}"
    left = f", about {(plan.steps - step) * seconds / step:.0f} s left" if step else ""
    LOG.info(f"{desc}: step {step} of {plan.steps}{shown}{score}, {seconds:.0f} s{left}")


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Leave torch's random state, of every device, as it was: a training seeds it with the number of each step.

    What a person draws after it in the same notebook then follows from that person's own seed.
    """
    import torch

    with torch.random.fork_rng(range(torch.cuda.device_count())):
        on_mps = torch.backends.mps.is_available()
        before = torch.mps.get_rng_state() if on_mps else None
        try:
            yield
        finally:
            if on_mps:
                torch.mps.set_rng_state(before)
