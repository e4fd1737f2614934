"""What a training leaves in its folder: the state it resumes from, the best weights, the history of its scores."""

from __future__ import annotations

import csv
import json
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cellkit.errors import UserError
from cellkit.files import atomic_path
from cellkit.log import LOG
from cellkit.models.averaging import Average


@dataclass
class History:
    """What happened: one row per step range, and how it ended.

    Parameters
    ----------
    rows : list of dict
        step, loss (mean since the last row), score (validation), seconds, and what else the score tells.
    best_step : int
        The step whose weights are kept; 0 = the start weights. The last one where no score chooses.
    stopped : str
        "steps done", "no better score in N evaluations" or "loss not finite at step N".
    """

    rows: list[dict] = field(default_factory=list)
    best_step: int = -1
    best_score: float = -math.inf
    stopped: str = ""

    def write(self, path: Path) -> Path:
        """Write the rows as CSV, atomically; `kept` is 1 in the row whose weights are kept."""
        columns = ["step", "loss", "score", "seconds", "kept"]
        columns += [name for name in dict.fromkeys(key for row in self.rows for key in row) if name not in columns]
        with atomic_path(path) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows({**row, "kept": int(row["step"] == self.best_step)} for row in self.rows)
        return path


def find_history(folder: str | Path) -> Path | None:
    """Return the ``history.csv`` that a training left in its folder; None of a model that does not learn step by step."""
    path = Path(folder) / "history.csv"
    return path if path.is_file() else None


def read_history(path: str | Path) -> History:
    """Read what `History.write` wrote; how it ended is not in it."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    kept = next((row for row in rows if row["kept"] == "1"), rows[-1])
    numbers = [{name: float(value or math.nan) for name, value in row.items() if name != "kept"} for row in rows]
    return History([{**row, "step": int(row["step"])} for row in numbers], int(kept["step"]), float(kept["score"]))


def computed_in(network: Any) -> list[str]:
    """Return what the parts of a network are computed in: what ``precision: auto`` became here.

    Examples
    --------
    >>> import torch
    >>> computed_in(torch.nn.Linear(1, 1))
    []
    """
    return sorted({str(part.arithmetic) for part in network.modules() if hasattr(part, "arithmetic")})


class State:
    """The files a training leaves: the last state to resume from, the best weights, the history.

    Parameters that are not trained are as the training began, which is part of its fingerprint; they are not written.

    Parameters
    ----------
    model : torch.nn.Module
    optimizer : torch.optim.AdamW
    trained : list of torch.nn.Parameter
        Those of the optimizer.
    average : Average
    out : Path
        The folder.
    fingerprint : str
        Of this training: a state with another one is not resumed.
    """

    def __init__(self, model, optimizer, trained, average: Average, out: Path, fingerprint: str):
        self.model, self.optimizer, self.trained, self.fingerprint = model, optimizer, trained, fingerprint
        self.average = average
        self.last, self.best, self.history = out / "last.safetensors", out / "best.safetensors", out / "history.csv"

    def resume(self) -> tuple[int, History, list[float]]:
        """Load the last state if it is of this very training; else begin anew.

        Raises
        ------
        UserError
            There is one that cannot be read.
        """
        import torch
        from safetensors import safe_open

        if not self.last.is_file():
            return 0, History(), []
        try:
            with safe_open(self.last, "pt") as file:
                meta = json.loads(file.metadata()["cellkit"])
                if meta["fingerprint"] != self.fingerprint:
                    LOG.info(f"{self.last} is of other labels, settings or another cellkit: the training begins anew")
                    return 0, History(), []
                before, now = meta.get("computed_in"), computed_in(self.model)
                if before not in (None, now) and not meta["history"]["stopped"]:  # a finished one mixes nothing
                    LOG.info(f"{self.last} was computed in {before}, here it is {now}: the training begins anew")
                    return 0, History(), []
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        except Exception as error:
            raise UserError(
                f"{self.last} cannot be read: {error}", "delete it; the training then begins anew"
            ) from error
        self._load({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        for index, parameter in enumerate(self.trained):
            moments = {
                k: tensors[f"adam.{index}.{k}"]
                for k in ("step", "exp_avg", "exp_avg_sq")
                if f"adam.{index}.{k}" in tensors
            }
            if moments:  # the count of steps stays on the CPU, where AdamW keeps it
                self.optimizer.state[parameter] = {  # the others have the order in memory of the parameter
                    k: v if k == "step" else torch.empty_like(parameter.detach()).copy_(v) for k, v in moments.items()
                }
        for key, value in self.average.mean.items():
            value.copy_(tensors[f"average.{key}"])
        self.average.taken = meta["averaged"]
        return meta["step"], _history(meta["history"]), meta["losses"]

    def save(self, step: int, history: History, losses: list[float]) -> None:
        """Write what a training goes on from, and the history."""
        tensors = {f"model.{k}": v for k, v in self._changing().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.mean.items()}
        for index, parameter in enumerate(self.trained):
            tensors |= {f"adam.{index}.{k}": v for k, v in self.optimizer.state.get(parameter, {}).items()}
        meta = {
            "fingerprint": self.fingerprint,
            "computed_in": computed_in(self.model),
            "step": step,
            "history": _plain(history),
            "losses": losses,
        }
        meta["averaged"] = self.average.taken
        save_tensors(self.last, tensors, {"cellkit": json.dumps(meta)})
        history.write(self.history)

    def keep_best(self) -> None:
        """Write the weights that the model has now as the best."""
        save_tensors(self.best, self._changing(), {"cellkit": self.fingerprint})

    def finish(self, step: int, history: History, best: bool) -> None:
        """Put the best weights back where they were chosen, else the average; leave a last state that says it is finished."""
        from safetensors.torch import load_file

        if best and self.best.is_file():
            self._load(load_file(self.best))
        else:
            self.average.put()
        self.model.eval()
        self.save(step, history, [])

    def _changing(self) -> dict:
        """Return the tensors that a training may change: all but the parameters that are not trained."""
        still = {name for name, parameter in self.model.named_parameters() if not parameter.requires_grad}
        return {name: tensor for name, tensor in self.model.state_dict().items() if name not in still}

    def _load(self, tensors: dict) -> None:
        """Give the model the tensors that were written of it.

        Raises
        ------
        UserError
            They are not those that it trains.
        """
        if missing := sorted(set(self._changing()) - set(tensors)):
            raise UserError(
                f"{self.last.parent} holds the state of another training: {missing[0]} is missing",
                "delete last.safetensors and best.safetensors; the training then begins anew",
            )
        self.model.load_state_dict(self.model.state_dict() | tensors)


def _plain(history: History) -> dict:
    rows = [
        {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        for row in history.rows
    ]
    best = history.best_score if math.isfinite(history.best_score) else -1e300
    return asdict(history) | {"rows": rows, "best_score": best}


def _history(plain: dict) -> History:
    """Return the history that `_plain` made JSON of: what is null there is no number."""
    rows = [{k: math.nan if v is None else v for k, v in row.items()} for row in plain["rows"]]
    best = -math.inf if plain["best_score"] == -1e300 else plain["best_score"]
    return History(**{**plain, "rows": rows, "best_score": best})


def save_tensors(path: Path, tensors: dict, metadata: dict[str, str]) -> Path:
    """Write tensors as safetensors, atomically, each contiguous and on the CPU.

    Raises
    ------
    OSError
        As of any other file: safetensors itself tells a full disk in words only.
    """
    import re

    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        try:
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary, metadata=metadata)
        except SafetensorError as error:
            number = re.search(r"\(os error (\d+)\)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    return Path(path)
