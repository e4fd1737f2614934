"""A cluster on this machine: real processes, the same results as one, whatever becomes of the workers."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from distributed import Future
from hypothesis import given, settings
from hypothesis import strategies as st
from work import ask_for, die_once, halve, kill_at_five, size_of, slowly, stop_at_three, where

from cellkit.cluster import loop
from cellkit.cluster.opened import Cluster, cluster_of, current
from cellkit.cluster.remote import run_part
from cellkit.errors import Quarantined, StopAll, UserError
from cellkit.microscope.batch import convert_batch
from cellkit.microscope.convert import Conversion
from cellkit.parallel import map_items
from cellkit.sources.drawn.files import write_fields


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with cluster_of({"kind": "local", "workers": 2, "cores": 1, "memory": "1 GB"}):
        yield current()


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@settings(max_examples=12)
@given(numbers=st.lists(st.integers(0, 50), max_size=40))
def test_the_same_as_in_one_process_in_order(cluster, numbers):
    assert map_items(halve, numbers, "halve", 1) == map_items(halve, numbers, "halve")


def test_each_result_is_passed_on_in_order(cluster):
    seen = []
    map_items(halve, range(400), "halve", 1, then=lambda item, result: seen.append((item, result)))
    assert seen == [(n, n // 2) for n in range(0, 400, 2)]


def test_many_small_items_go_out_in_few_parts(cluster, monkeypatch):
    steps = []
    sent = loop._Loop._send
    monkeypatch.setattr(loop._Loop, "_send", lambda self: (sent(self), steps.append((len(self.flying), self.sent))))
    assert map_items(abs, range(20_000), "abs", 1)[0] == list(range(20_000))
    most, parts = max(flying for flying, _ in steps), steps[-1][1]
    assert most <= 2 * loop.PARTS_A_WORKER and parts < 400


def test_threads_folder_and_variables_are_those_asked_for(cluster, monkeypatch, tmp_path):
    monkeypatch.setenv("CELLKIT_DATA", "/elsewhere")
    monkeypatch.chdir(tmp_path)
    seen = map_items(where, range(8), "where", 1)[0]
    assert {one[1:] for one in seen} == {("1", str(tmp_path), "/elsewhere")}
    assert os.getpid() not in {pid for pid, *_ in seen}
    assert map_items(where, [1], "where")[0][0][0] == os.getpid(), "without workers: this process"


def test_only_this_machine_is_listened_to(cluster):
    cluster.open()
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    found = [one.laddr.ip for process in processes for one in process.net_connections() if one.status == "LISTEN"]
    assert found and set(found) == {"127.0.0.1"}
    assert cluster.client.scheduler.address.startswith("tls://")


def test_the_same_bytes_for_any_number_of_workers(cluster, tmp_path):
    fields = write_fields(tmp_path / "in", images_per_line=2, mixed_images=1, size_px=64, planes=2)
    files = [(tmp_path / "in" / one.path, Path(one.path).name.partition(".")[0]) for one in fields]
    (tmp_path / "in" / "broken.tif").write_bytes(b"II*\0")
    files.append((tmp_path / "in" / "broken.tif", "broken"))
    how = Conversion({"nuclei": "DAPI", "cytoplasm": "GFP"}, percentiles_of="batch")
    on_cluster = convert_batch(files, tmp_path / "cluster", how, 1)
    with cluster_of("none"):
        made = {workers: convert_batch(files, tmp_path / str(workers), how, workers) for workers in (1, 2)}
    for workers, batch in made.items():
        assert files_of(tmp_path / str(workers)) == files_of(tmp_path / "cluster")
        assert batch.rows == on_cluster.rows and batch.quarantined == on_cluster.quarantined
    assert [one.item for one in on_cluster.quarantined] == [str(files[-1][0])]


def test_what_is_no_fault_of_the_item_ends_the_loop(cluster):
    seen = []
    with pytest.raises(StopAll, match="the disk is full\nfree space"):
        map_items(stop_at_three, range(60), "stop", 1, then=lambda item, _: seen.append(item))
    assert seen == [0, 1, 2][: len(seen)]
    assert map_items(halve, [2], "halve", 1)[0] == [1], "the next goes on"


def test_an_item_that_kills_its_workers_is_left_out_alone_and_named(cluster):
    results, failed = map_items(kill_at_five, range(30), "kill", 1, name=lambda n: f"item {n}")
    assert results == [None if n == 5 else n for n in range(30)]
    why = "3 workers died over it, perhaps for want of memory: raise cluster.memory, or do it without --cluster"
    assert failed == [Quarantined("item 5", why)]


def test_what_a_worker_has_no_room_for_is_refused_by_it_before_it_dies(cluster):
    (asked,) = map_items(ask_for, [2 * 10**9], "ask", 1)[1]
    assert "takes about 2.0 GB of memory, 0." in asked.reason and "raise cluster.memory" in asked.reason
    assert map_items(ask_for, [10**7], "ask", 1)[0] == [10**7]


def test_workers_that_die_lose_nothing(cluster, tmp_path):
    items = [(n, tmp_path) for n in range(8)]
    assert map_items(die_once, items, "die", 1) == (list(range(8)), [])
    assert len(list(tmp_path.iterdir())) == 2


def test_workers_killed_from_outside_lose_nothing(cluster):
    stop = threading.Event()

    def kill() -> None:
        for _ in range(2):
            if stop.wait(1.2):
                return
            inside = [p.pid for p in psutil.Process().children(recursive=True)]
            workers = [pid for pid in inside if "spawn_main" in " ".join(_line(pid))]
            if workers:
                with suppress(ProcessLookupError):  # it ended by itself meanwhile
                    os.kill(workers[0], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        assert map_items(slowly, range(8), "wait", 1) == (list(range(8)), [])
    finally:
        stop.set()
        thread.join()


def test_a_file_that_a_worker_does_not_see_is_named(cluster):
    here = Path(f"/proc/self/task/{os.getpid()}/stat")  # of this process alone
    with pytest.raises(UserError, match=f"'{here}' is here, and not on .*: no file system that both share\nput images"):
        map_items(size_of, [here], "size", 1)
    (gone,) = map_items(size_of, [Path("/nowhere/a.tif")], "size", 1)[1]
    assert gone.reason.startswith("FileNotFoundError")


def test_a_worker_with_other_code_or_another_folder_refuses(cluster, tmp_path):
    cluster.open()
    from contextlib import ExitStack

    wanted = loop._expected(cluster, halve, ExitStack())

    def refused(**changes) -> str:
        asked = pickle.dumps(replace(wanted, **changes))
        answer = cluster.client.submit(run_part, pickle.dumps(halve), pickle.dumps([2]), asked, pure=False).result()
        return str(pickle.loads(answer).refused)

    assert "has cellkit 0.1" in refused(version="9.9") and "here is cellkit 9.9" in refused(version="9.9")
    assert "other code of the same version" in refused(code="0")
    assert f"'{tmp_path / 'no'}' is here, and not on" in refused(folder=str(tmp_path / "no"))
    assert f"'{tmp_path}' is here, and not on" in refused(marks=(str(tmp_path / ".mark"),))
    assert refused() == "None"


def test_work_that_the_scheduler_gives_up_is_told_in_two_lines(cluster):
    def give_up(item: int, result: int) -> None:
        cluster.client.cancel([Future(key, cluster.client) for key in list(cluster.client.futures)], force=True)

    with pytest.raises(UserError, match="cluster local: its scheduler ended, or gave the work up\nsee that it runs"):
        map_items(slowly, range(4), "wait", 1, then=give_up)


def test_a_package_that_workers_lack_is_named(cluster):
    class Lacking:
        def __reduce__(self) -> tuple:
            return __import__, ("no_such_package",)

        def __call__(self, number: int) -> int:
            return number

    with pytest.raises(UserError, match="a worker has no package no_such_package\nlet workers use this environment"):
        map_items(Lacking(), [1], "lack", 1)


def test_what_cannot_be_sent_is_said_as_it_is(cluster):
    lock = threading.Lock()
    with pytest.raises(TypeError, match="pickle"):
        map_items(lambda n: (n, lock), [1], "send", 1)


@pytest.fixture
def heard() -> Iterator[object]:
    """What Ctrl-C calls here: tests that run in the background of a shell ignore it otherwise."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_in_the_middle_of_a_del_is_not_lost(cluster, heard, monkeypatch):
    class Gone:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("sys.unraisablehook", lambda told: None)  # Python tells it and goes on
    with pytest.raises(KeyboardInterrupt):
        map_items(halve, [2, 4, 6], "halve", 1, then=lambda item, result: Gone() and None)
    assert signal.getsignal(signal.SIGINT) is heard
    assert map_items(halve, [2], "halve", 1)[0] == [1]


def test_a_cluster_that_is_closed_leaves_no_process():
    begun = time.monotonic()
    with cluster_of({"kind": "local", "workers": 1, "memory": "1 GB"}):
        assert current().client is None, "nothing is started before there is work"
        before = {p.pid for p in psutil.Process().children(recursive=True)}
        map_items(halve, [2], "halve", 1)
        inside = {p.pid for p in psutil.Process().children(recursive=True)} - before
    gone = time.monotonic() + 10
    while any(psutil.pid_exists(pid) and "spawn_main" in " ".join(_line(pid)) for pid in inside):
        assert time.monotonic() < gone, f"after {time.monotonic() - begun:.0f} s"
        time.sleep(0.1)
    assert inside


def _line(pid: int) -> list[str]:
    try:
        return psutil.Process(pid).cmdline()
    except psutil.Error:
        return []
