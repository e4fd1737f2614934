"""A training in several processes, one for each GPU: each takes its share of every batch, and their gradients are summed.

So the steps are those of one process, but for rounding, where the network draws nothing at random itself (dropout does).
`accelerate` says which process this is, and on which device it computes.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellkit.errors import UserError, counted
from cellkit.log import LOG

if TYPE_CHECKING:
    import torch

    from cellkit.cells.dataset import CellDataset

JOB, ERROR = "job.pickle", "error.json"
STATE = ("last.safetensors", "best.safetensors", "history.csv")  # what a training resumes from


@cache
def place() -> tuple[int, int]:
    """Return which process of a training this is, from 0 on, and how many there are.

    Raises
    ------
    RuntimeError
        The group of processes did not come about.
    """
    count = int(os.environ.get("WORLD_SIZE", 1))
    if count == 1:
        return 0, 1
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())  # begins the group of processes, and chooses the device
    if state.num_processes != count:
        raise RuntimeError(f"accelerate sees {state.num_processes} processes of {count}")
    return state.process_index, count


def summed(tensors: Iterable[torch.Tensor]) -> None:
    """Add up tensors over all processes, in place."""
    if place()[1] > 1:
        from torch.distributed import all_reduce

        for tensor in tensors:
            all_reduce(tensor)


def of_first(value: float) -> float:
    """Return the number that the first process has: what is decided by it is then decided alike in all."""
    if place()[1] == 1:
        return value
    from torch.distributed import broadcast_object_list

    told = [value]
    broadcast_object_list(told)
    return told[0]


def check_processes(count: int, batch_size: int | None = None, key: str = "finetune.gpus") -> None:
    """Refuse more processes than one where they cannot be had.

    Parameters
    ----------
    count : int
    batch_size : int, optional
        Crops, of which each process needs one.
    key : str
        The setting that says how many.

    Raises
    ------
    UserError
        There are GPUs, but fewer; fewer crops than processes; or accelerate is missing.
    """
    if count == 1:
        return
    if batch_size is not None and batch_size < count:
        raise UserError(
            f"{key} is {count}, and a batch has {counted(batch_size, 'crop')}",
            "set batch_size higher or gpus lower",
        )
    import torch

    if torch.cuda.is_available() and torch.cuda.device_count() < count:
        raise UserError(f"{key} is {count}, this machine has {torch.cuda.device_count()}", "set gpus lower")
    if find_spec("accelerate") is None:
        raise UserError(f"{key} is {count}, which needs the package 'accelerate'", "pip install accelerate")


def train_shared(backend: str, kind: type, train: CellDataset, val: CellDataset, config: Any, out: Path) -> Path:
    """Train in as many processes as a configuration says, see `train_on`.

    Parameters
    ----------
    kind : type
        ``TrainSettings`` of the backend: `config` has these fields, and perhaps others.
    """
    own = {name: getattr(config, name) for name in kind.model_fields}
    return train_on(config.gpus, backend, train, val, own, Path(out))


def train_on(
    count: int, backend: str, train: CellDataset, val: CellDataset, settings: dict[str, Any], out: Path
) -> Path:
    """Train in so many processes, and return the checkpoint that the first of them writes into `out`.

    The others write into folders of their own, which go in the end.

    Parameters
    ----------
    backend : str
        Name of the module.
    settings : dict
        Of its ``TrainSettings``.

    Raises
    ------
    UserError
        There are fewer GPUs, accelerate is missing, or the training refuses something.
    RuntimeError
        A process broke down; or this is one of several already.
    """
    if "WORLD_SIZE" in os.environ:
        raise RuntimeError("a process of a training begins no others")
    check_processes(count)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for rank in range(1, count):
            (folder / str(rank)).mkdir()
            for path in (out / one for one in STATE):
                if path.is_file():
                    shutil.copyfile(path, folder / str(rank) / path.name)
        (folder / JOB).write_bytes(pickle.dumps((backend, train, val, settings, out)))
        LOG.info(f"{backend}: {counted(count, 'process', 'processes')}, each with its share of every batch")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        with subprocess.Popen([*command, "-m", __name__, name], stdin=subprocess.PIPE) as running:
            try:
                code = running.wait()
            finally:
                running.terminate()
                running.wait()
        if (folder / ERROR).is_file():
            raise UserError(*json.loads((folder / ERROR).read_text()))
        if code:
            raise RuntimeError(f"a process of the training ended with exit status {code}; what it said stands above")
        return Path((folder / "made").read_text())


def end_with_parent() -> None:
    """Let this process end when the one that began the training does, even by kill -9: its end of our input is closed then."""

    def wait() -> None:
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=wait, name="end with parent", daemon=True).start()


def end_together() -> None:
    """Wait for the other processes and leave their group: one that ends while its threads still listen aborts."""
    from torch.distributed import barrier, destroy_process_group

    barrier()
    destroy_process_group()


def _one(folder: Path) -> None:
    """Do this process's share of the training that a folder describes."""
    end_with_parent()
    rank, _ = place()
    backend, train, val, settings, out = pickle.loads((folder / JOB).read_bytes())  # noqa: S301 - written by `train_on`
    module = import_module(f"cellkit.models.{backend}")
    if rank:
        LOG.setLevel("ERROR")
    try:
        made = module.train(train, val, module.TrainSettings(**settings), folder / str(rank) if rank else out)
    except UserError as error:
        (folder / ERROR).write_text(json.dumps([error.problem, error.remedy]))
        raise SystemExit(2) from error
    if not rank:
        (folder / "made").write_text(str(made))
    end_together()


if __name__ == "__main__":
    _one(Path(sys.argv[1]))
