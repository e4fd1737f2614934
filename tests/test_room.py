"""What room there is: control groups, limits and swap from trees of real files, small file systems."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from cellkit import room
from cellkit.errors import UserError
from cellkit.machine import check_space
from cellkit.room import Disk, check_disks, disk_of, kind_of, memory_of, reserved

GB = 10**9


@pytest.fixture
def machine(tmp_path):
    """Write files of a machine of 16 GB, 10 GB of them free, 2 GB of swap; return its root."""

    def write(**files: str) -> Path:
        told = {
            "proc/meminfo": "MemTotal: 16000000 kB\nMemAvailable: 10000000 kB\nSwapFree: 2000000 kB\n",
            "proc/self/cgroup": "0::/\n",
        }
        for name, text in (told | {key.replace("__", "/"): text for key, text in files.items()}).items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


def test_without_a_limit_the_machine_counts_and_swap_is_told_apart(machine):
    found = memory_of(machine())
    assert (found.total, found.free, found.swap, found.limited_by) == (
        16384 * 10**6,
        10240 * 10**6,
        2048 * 10**6,
        "this computer",
    )


def test_a_control_group_of_version_2_allows_what_is_left_of_the_narrowest_level(machine):
    groups = "sys/fs/cgroup/job"
    root = machine(**{
        "proc/self/cgroup": "0::/job/step\n", f"{groups}/memory.max": f"{4 * GB}\n", f"{groups}/memory.current": f"{3 * GB}\n",
        f"{groups}/memory.stat": f"anon 5\ninactive_file {GB}\n", f"{groups}/memory.swap.max": "0\n",
        f"{groups}/memory.swap.current": "0\n", f"{groups}/step/memory.max": "max\n", f"{groups}/step/memory.current": "1\n",
    })  # fmt: skip
    found = memory_of(root)
    assert (found.total, found.free, found.swap) == (4 * GB, 2 * GB, 0), "pages of files that can be dropped are free"
    assert "control group" in found.limited_by


def test_a_control_group_of_version_1_and_no_limit_in_it(machine):
    own = "sys/fs/cgroup/memory/box"
    root = machine(**{
        "proc/self/cgroup": "5:memory:/box\n4:cpu,cpuacct:/\n0::/\n", f"{own}/memory.limit_in_bytes": f"{3 * GB}\n",
        f"{own}/memory.usage_in_bytes": f"{GB}\n", f"{own}/memory.stat": "total_inactive_file 0\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    })  # fmt: skip
    assert memory_of(root).free == 2 * GB
    (root / own / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert memory_of(root).limited_by == "this computer"


def test_groups_of_another_tree_are_looked_for_at_its_root(machine):
    root = machine(**{
        "proc/self/cgroup": "0::/../../elsewhere\n", "sys/fs/cgroup/memory.max": f"{GB}\n", "sys/fs/cgroup/memory.current": "0\n"
    })  # fmt: skip
    assert memory_of(root).free == GB


def test_a_limit_of_the_process_counts(machine):
    table = "Limit                     Soft Limit           Hard Limit           Units     \n"
    table += "Max address space         1500000000           unlimited            bytes     \n"
    found = memory_of(machine(**{"proc/self/limits": table}))
    assert found.free == 1_500_000_000 and "max address space" in found.limited_by


def test_a_worker_has_no_more_than_its_own(machine, monkeypatch):
    monkeypatch.setattr(room, "held_bytes", lambda: 300_000_000)
    try:
        room.limit_worker(GB)
        found = memory_of(machine())
    finally:
        room.limit_worker(None)
    assert (found.total, found.free, found.limited_by) == (GB, 700_000_000, room.WORKER)
    assert memory_of(machine()).limited_by == "this computer"


def test_this_machine_has_some_memory_and_some_disk(tmp_path):
    assert 0 < memory_of().free <= memory_of().total
    here = disk_of("the run folder", tmp_path / "not" / "there")
    assert here.folder == tmp_path and here.free_bytes > 0 and not here.read_only
    assert reserved(tmp_path, 4096) and not list(tmp_path.iterdir())


def test_a_disk_that_does_not_say_its_size_refuses_nothing(tmp_path, monkeypatch):
    silent = SimpleNamespace(f_blocks=0, f_bavail=0, f_frsize=4096, f_files=0, f_favail=0, f_flag=0)
    monkeypatch.setattr(os, "statvfs", lambda folder: silent)
    disk = disk_of("the run folder", tmp_path)
    check_disks([(disk, 1e15, 10**9)], "")
    assert disk.free_files is None
    monkeypatch.delattr(os, "statvfs")  # as on Windows
    monkeypatch.setattr(room.shutil, "disk_usage", lambda folder: SimpleNamespace(total=0, free=0))
    check_disks([(disk_of("the run folder", tmp_path), 1e15, 1)], "")
    check_space(tmp_path, 10**15, "a download")


def test_a_drive_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(room.os.path, "isdir", lambda place: False)
    with pytest.raises(UserError, match="the run folder .*: there is no '/'"):
        disk_of("the run folder", "runs/a")


def test_the_largest_file_that_is_allowed_is_no_quota(tmp_path):
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    try:
        assert reserved(tmp_path, 2**21)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("error", [TypeError, OSError])
def test_where_nothing_is_reserved_nothing_is_refused(tmp_path, monkeypatch, error):
    import ctypes

    def no_library(*_, **__):
        raise error  # TypeError is what Windows says

    monkeypatch.setattr(ctypes, "CDLL", no_library)
    assert reserved(tmp_path, 10**18)


def test_places_on_one_disk_share_what_is_free_there():
    run, temporary = (
        Disk(what, Path("/"), 1, 100 * 10**6, 50) for what in ("the run folder", "the folder of temporary files")
    )
    check_disks([(run, 60e6, 10), (temporary, 30e6, 10)], "")
    with pytest.raises(
        UserError, match="the run folder .* and the folder of temporary files .* need about 120 MB, 100 MB are"
    ):
        check_disks([(run, 60e6, 10), (temporary, 60e6, 10)], "x")
    with pytest.raises(UserError, match="about 60 files are to be written, the file system takes 50 more"):
        check_disks([(run, 6, 40), (temporary, 6, 20)], "x")
    with pytest.raises(UserError, match="the run folder is on a read-only file system"):
        check_disks([(Disk("the run folder", Path("/"), 1, 10**9, None, True), 6, 40)], "x")


@pytest.fixture(params=["size=4m", "size=4m,nr_inodes=20"])
def small_disk(tmp_path, request):
    """A file system of 4 MB, and one that takes 20 files."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", request.param, "tmpfs", place]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("nobody but root may mount a small file system")
    yield place, request.param
    subprocess.run(["umount", place], check=True)


def test_a_small_file_system_says_what_it_takes(small_disk, monkeypatch):
    place, kind = small_disk
    disk = disk_of("the run folder", place)
    assert disk.device != os.stat(place.parent).st_dev and disk.free_bytes <= 4 * 2**20
    assert "nr_inodes" not in kind or disk.free_files < 20
    assert kind_of(place) == "tmpfs" and reserved(place, 2**23), "room that is reserved there would be memory"
    monkeypatch.setattr(room, "IN_MEMORY", set())
    assert reserved(place, 2**20) and not reserved(place, 2**23)
