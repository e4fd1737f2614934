"""What a worker does of a part, in this process: one at a time, as the command that asks is."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from work import together, where

from cellkit import __version__
from cellkit.cluster import remote


@pytest.fixture(autouse=True)
def this_process(monkeypatch, tmp_path):
    """Give back the folder and all else that a worker changes of its process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(remote, "IS_WORKER", False)
    monkeypatch.setattr(remote, "set_threads", lambda count: None)
    for name in [name for name in os.environ if name.startswith("CELLKIT_")]:
        monkeypatch.setenv(name, os.environ[name])
    yield
    remote._made_ready.cache_clear()


def done(fn: Callable, items: list[int], folder: Path) -> list:
    wanted = remote.Expected(__version__, remote.own_code(), str(folder), (), (), 1)
    answer = pickle.loads(remote.run_part(pickle.dumps(fn), pickle.dumps(items), pickle.dumps(wanted)))
    return [result for result, _ in answer.pairs]


def test_threads_of_one_worker_take_turns(tmp_path):
    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(lambda k: done(together, [k], tmp_path), range(6))) == [[1]] * 6


def test_two_commands_that_share_a_worker_keep_their_folders(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    assert [done(where, [0], folders[k])[0][2] for k in (0, 1, 0, 1)] == [str(folders[k]) for k in (0, 1, 0, 1)]
