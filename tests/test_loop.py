"""One loop over many items: in order, a failing item set aside, the same for any number of workers."""

import errno
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cellkit.parallel
from cellkit.errors import Quarantined, UserError
from cellkit.parallel import StopAll, map_all, map_items, progress


def halve(number: int) -> int:
    if number % 2:
        raise UserError(f"{number} is odd", "give an even number")
    if number == 100:
        raise MemoryError
    return number // 2


def stop_at_three(number: int) -> int:
    if number == 3:
        raise StopAll("the disk is full", "free space")
    return number


def die_at_three(number: int) -> int:
    if number == 3:
        import os
        import signal

        os.kill(os.getpid(), signal.SIGKILL)
    return number


# Each item but the first two takes 400 MB that it never gives back, and longer than joblib's look at the memory.
GROW = """
import os, time

KEPT = []

def grow(number):
    time.sleep(1.2 if number > 1 else 0.2)
    KEPT.append(bytearray(os.urandom(1000)) * (400_000 if number > 1 else 1))
    return os.getpid()
"""


class Elsewhere:
    """A function that other processes cannot open."""

    def __reduce__(self) -> tuple:
        return Path("no_such_model").read_text, ()

    def __call__(self, number: int) -> int:
        return number


def draw(seed: int) -> float:
    import numpy as np

    return float(np.random.default_rng(seed).random())


class TestMapItems:
    def test_results_keep_their_places_and_failures_their_reasons(self):
        results, quarantined = map_items(halve, [4, 3, 10, 100], "halve", name=lambda n: f"item {n}")
        assert results == [2, None, 5, None]
        assert quarantined == [
            Quarantined("item 3", "UserError: 3 is odd\ngive an even number"),
            Quarantined("item 100", "MemoryError: "),
        ]

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
    def test_a_full_disk_is_no_fault_of_the_item(self, number):
        def write(item):
            raise OSError(number, "no", f"/out/{item}")

        with pytest.raises(StopAll, match="'/out/1': .*\n.*repeat the command"):
            map_items(write, [1, 2], "write")
        number = errno.EIO  # a bad sector is
        assert [q.item for q in map_items(write, [1, 2], "write")[1]] == ["1", "2"]

    def test_nothing_in_nothing_out(self):
        assert map_items(halve, [], "halve") == ([], [])

    @given(st.lists(st.integers(0, 50)))
    def test_every_item_is_either_done_or_set_aside(self, numbers):
        results, quarantined = map_items(halve, numbers, "halve")
        assert results == [None if n % 2 else n // 2 for n in numbers]
        assert [q.item for q in quarantined] == [str(n) for n in numbers if n % 2]

    def test_the_same_for_any_number_of_workers(self):  # fault 57
        items = list(range(12))
        assert map_items(draw, items, "draw") == map_items(draw, items, "draw", workers=2)
        assert map_items(halve, [4, 3, 100, 6], "halve") == map_items(halve, [4, 3, 100, 6], "halve", workers=2)

    def test_workers_that_take_much_memory_are_replaced_also_where_warnings_are_errors(self, tmp_path):
        (tmp_path / "grow.py").write_text(GROW)
        code = "import grow, cellkit.parallel as p; print(*p.map_items(grow.grow, range(6), 'grow', workers=2)[0])"
        command = [sys.executable, "-W", "error", "-c", code]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1])])}
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=100)
        pids = done.stdout.split()
        assert len(pids) == 6 and len(set(pids)) > 2, done.stderr

    @pytest.mark.parametrize("workers", [1, 2])
    def test_each_result_is_passed_on_in_order_and_failures_are_not(self, workers):
        seen = []
        map_items(halve, [4, 3, 10, 100, 8], "halve", workers, then=lambda item, result: seen.append((item, result)))
        assert seen == [(4, 2), (10, 5), (8, 4)]

    @pytest.mark.parametrize("workers", [1, 2])
    def test_what_is_no_fault_of_the_item_ends_the_loop(self, workers):
        seen = []
        with pytest.raises(StopAll, match="the disk is full\nfree space"):
            map_items(stop_at_three, range(60), "stop", workers, then=lambda item, _: seen.append(item))
        assert seen == [0, 1, 2][: len(seen)]

    @pytest.mark.parametrize("workers", [None, 1, 2])
    def test_where_none_may_be_left_out_the_first_failure_ends_the_loop(self, workers):
        seen = []
        assert map_all(halve, [4, 8], "halve", workers, then=lambda item, _: seen.append(item)) == [2, 4] and seen == [
            4,
            8,
        ]
        with pytest.raises(UserError, match="3 is odd\ngive an even number"):
            map_all(halve, [4, 3, 5], "halve", workers)
        kind = StopAll if workers == 2 else MemoryError  # in this process the very error
        with pytest.raises(kind, match="item 100: MemoryError" if workers == 2 else None):
            map_all(halve, [4, 100, 3], "halve", workers, name=lambda number: f"item {number}")

    def test_a_full_disk_may_show_while_results_are_noted(self):
        def note(item, result):
            raise StopAll("the disk is full")

        for workers in (1, 2):
            with pytest.raises(StopAll):
                map_items(draw, range(20), "draw", workers, then=note)

    def test_a_killed_worker_is_said(self):  # fault 54
        with pytest.raises(UserError, match="a worker process was killed, perhaps for want of memory\nuse fewer"):
            map_items(die_at_three, range(8), "die", workers=2)
        assert map_items(draw, [1, 2], "draw", workers=2)[1] == []  # new processes take over

    def test_what_a_worker_cannot_open_is_said_and_is_no_want_of_memory(self):
        with pytest.raises(
            UserError, match="open: a worker process could not begin: FileNotFoundError: .*no_such_model'"
        ):
            map_items(Elsewhere(), range(3), "open", workers=2)

    def test_takes_a_stream(self):
        assert map_items(halve, (n for n in (2, 4)), "halve")[0] == [1, 2]

    @pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
    def test_an_interrupt_is_no_bad_item(self, stop):
        def interrupted(number):
            raise stop

        with pytest.raises(stop):
            map_items(interrupted, [1], "stop")


class TestProgress:
    def test_passes_everything_on_without_a_word_when_it_is_quick(self, capfd):
        assert list(progress(range(1000), "quick")) == list(range(1000))
        out, err = capfd.readouterr()
        assert out == err == ""

    def test_tells_how_far_it_is_on_stderr(self, capfd, monkeypatch):
        monkeypatch.setattr(cellkit.parallel, "LOG_EVERY_S", 0.0)
        clock = iter(range(100))
        monkeypatch.setattr(cellkit.parallel.time, "monotonic", lambda: float(next(clock)))
        assert list(progress(iter("abc"), "spell", total=3)) == ["a", "b", "c"]
        out, err = capfd.readouterr()
        assert out == ""
        assert err.splitlines() == [
            "spell: 0 of 3",
            "spell: 1 of 3, about 4 s left",
            "spell: 2 of 3, about 2 s left",
        ]

    def test_of_an_unknown_number(self, capfd, monkeypatch):
        monkeypatch.setattr(cellkit.parallel, "LOG_EVERY_S", 0.0)
        assert list(progress(iter("ab"), "spell")) == ["a", "b"]
        assert capfd.readouterr().err.splitlines() == ["spell: 0", "spell: 1"]

    def test_is_a_stream(self):
        taken = []
        stream = progress((taken.append(n) or n for n in range(5)), "take", total=5)
        assert next(stream) == 0
        assert taken == [0]

    def test_a_bar_is_drawn_for_a_person_only(self):
        code = """
            import sys, types
            sys.modules["ipykernel"] = types.ModuleType("ipykernel")
            from cellkit.machine import in_jupyter
            print(in_jupyter())
        """
        for headless, shown in (({}, "True"), ({"CELLKIT_HEADLESS": "1"}, "False")):
            env = {"PATH": "", "PYTHONPATH": ":".join(sys.path)} | headless
            command = [sys.executable, "-c", textwrap.dedent(code)]
            assert subprocess.run(command, capture_output=True, text=True, env=env).stdout.strip() == shown
