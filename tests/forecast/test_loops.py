"""The forecast of commands over many images: what is said, learned and refused, by the commands themselves."""

from __future__ import annotations

import re
import shutil
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile

from cellkit.errors import UserError
from cellkit.files import read_json
from cellkit.forecast import loops
from cellkit.forecast.loops import Loop, sizes_of
from cellkit.microscope.frames import Frame
from cellkit.room import Memory

RNG = np.random.default_rng(0)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """24 grey files of 100 x 80 px, the last twice as high, in a folder; a cache of one's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "in").mkdir()
    for k in range(24):
        tifffile.imwrite(
            tmp_path / "in" / f"{k:02}.tif", RNG.integers(0, 4000, (200 if k == 23 else 100, 80), np.uint16)
        )
    return tmp_path / "in"


def test_pixels_are_counted_by_headers(files, tmp_path):
    frames = [Frame(path, path.name, path.stem) for path in sorted(files.iterdir())]
    sizes = sizes_of(frames)
    assert (sizes.pictures, sizes.px, sizes.largest_px) == (24, 25 * 8000, 16000)
    (tmp_path / "bad.tif").write_bytes(b"no picture")
    broken = [*frames, Frame(tmp_path / "bad.tif", "bad.tif", "bad")]
    assert sizes_of(broken).px == pytest.approx(25 * 8000 / 24 * 25), "a broken file counts as the others"
    assert sizes_of([]).px == 0


@pytest.mark.parametrize("command", ["convert", "predict"])
def test_what_is_said_before_is_compared_afterwards_and_learned(said, files, tmp_path, monkeypatch, command):
    monkeypatch.setattr(loops, "WORTH_MPX", 0.1)
    given = {
        "convert": [files, "-o", tmp_path / "out", "--nuclei", 0],
        "predict": ["threshold", files, "-o", tmp_path / "out.json", "--labels", tmp_path / "out", "--nuclei", 0],
    }[command]
    code, _, err = said(command, *given)
    told = r"[\d.]+ (s|min), [\d.]+ [MG]B of memory, [\d.]+ MB of disk"  # on a busy computer minutes
    assert code == 0 and re.search(rf"forecast: 24 \w+, about {told} on this computer", err), err
    assert re.search(rf"took: {told}; forecast: about", err), err
    (kept,) = read_json(tmp_path / "cache" / "cellkit" / loops.KEPT_IN).values()
    assert {name: len(values) for name, values in kept.items()} == {"seconds": 1, "held": 1, "disk": 1}
    if command == "convert":
        counted, taken = (float(text) for text in re.findall(r"([\d.]+) MB of disk", err)[:2])
        assert taken == pytest.approx(counted, rel=0.3)


def test_small_work_is_not_timed_and_not_spoken_of(said, files, tmp_path):
    code, _, err = said("convert", files, "-o", tmp_path / "out", "--nuclei", 0)
    assert code == 0 and "forecast" not in err and "took" not in err
    assert not (tmp_path / "cache").exists()


def test_workers_that_do_not_fit_are_refused_with_how_many_would(files):
    frames = [Frame(path, path.name, path.stem) for path in sorted(files.iterdir())]
    loop = Loop("convert", [], lambda px: 1e9, lambda pictures, px, cells: {}, workers=8)
    with pytest.raises(UserError, match="convert with 8 workers takes about") as error:
        loop._check_memory(sizes_of(frames), Memory(8 * 10**9, 6 * 10**9), 8)
    fits = int(re.search(r"it fits with --workers (\d)", error.value.remedy)[1])
    assert 1 < fits < 8 and loop.memory(1, fits) <= 6e9 < loop.memory(1, fits + 1)
    assert "--force begins all the same" in error.value.remedy


def test_workers_of_a_cluster_elsewhere_need_no_memory_here(files, monkeypatch):
    frames = [Frame(path, path.name, path.stem) for path in sorted(files.iterdir())]
    let_go = []
    how = {"workers": 2, "release": lambda: let_go.append(True)}
    loop = Loop("convert", [], lambda px: 1e9, lambda pictures, px, cells: {}, **how)
    monkeypatch.setattr(loops, "memory_of", lambda: Memory(8 * 10**9, 6 * 10**9))
    slurm = SimpleNamespace(workers=20, is_elsewhere=True)
    monkeypatch.setattr(loops, "current", lambda: slurm)
    loop.begin(frames)
    assert loop.told["shared"] == 20 and let_go == [True], "what timing opened is let go of"
    slurm.is_elsewhere = False
    with pytest.raises(UserError, match="convert with 20 workers takes about"):
        loop.begin(frames)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 100 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", place]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("nobody but root may mount a small file system")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(said, files, small_disk):
    for command in (["convert", files, "-o", small_disk / "out"], ["predict", "threshold", files, "-o", small_disk / "o.json",
                                                                  "--overlays", small_disk / "out"]):  # fmt: skip
        code, out, err = said(*command, "--nuclei", 0)
        assert (code, out) == (2, "") and "are free on that disk" in err and "--force begins all the same" in err, err
        assert not list(small_disk.iterdir())
    code, out, err = said("convert", files, "-o", small_disk / "out", "--nuclei", 0, "--force")
    assert code == 2 and "No space left on device" in err


def test_what_goes_into_one_folder_adds_up(tmp_path):
    from cellkit.commands.loops import loop_of_predict
    from cellkit.predict.model import find_model

    def written(**places) -> dict:
        given = SimpleNamespace(
            out=tmp_path / "a.json", labels=None, overlays=None, cells=None, format="tif", workers=1, force=False
        )
        vars(given).update(places)
        return dict(loop_of_predict(given, find_model("threshold"), None).disk_of_px(2, 2e6, 0))

    alone, apart = written()[tmp_path], written(labels=tmp_path / "b", overlays=tmp_path / "b")[tmp_path / "b"]
    assert written(labels=tmp_path, overlays=tmp_path) == {tmp_path: pytest.approx(alone + apart)} and apart > 2e6
