"""A run that cannot fit is refused before it begins, and between its stages; nothing is written."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from types import SimpleNamespace

import pytest

from cellkit.config.reading import load_config
from cellkit.errors import UserError
from cellkit.files import write_json
from cellkit.forecast.stages import Forecast
from cellkit.forecast.words import noted
from cellkit.manifest import FORMAT, MANIFEST
from cellkit.run.foretold import Foretold, freed_by_forgetting, size_of

CONFIG = """
classes: [HEK, N2a]
convert: {source: drawn, channels: {nuclei: DAPI, cytoplasm: GFP}, drawn: {images_per_line: 4, size_px: 3072}}
finetune: {steps: 2}
maskrcnn: {steps: 2}
"""


@pytest.fixture
def small_disk(tmp_path, monkeypatch):
    """A file system of 300 MB, which holds no run of CONFIG; a cache of one's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=300m", "tmpfs", place]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("nobody but root may mount a small file system")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_run_that_the_disk_cannot_hold_is_refused_before_it_begins(said, tmp_path, small_disk):
    (tmp_path / "c.yaml").write_text(CONFIG)
    code, out, err = said("run", tmp_path / "c.yaml", "--run", small_disk / "run")
    assert (code, out) == (2, "") and "forecast: not timed" in err and "[1/6]" not in err
    assert "the run folder" in err and "MB are free on that disk" in err and "--force begins all the same" in err
    assert "no fewer or smaller images make it fit" in err, "the microscope files are drawn at their own size"
    assert not list(small_disk.iterdir())
    code, out, err = said("check", tmp_path / "c.yaml", "--run", small_disk / "run")
    assert code == 0 and "warning: the run folder" in out, "a check of the configuration warns of it"


def test_between_stages_the_disk_is_looked_at_again(small_disk):
    run = Foretold(small_disk / "run", None)
    run.found = {"05_train_maskrcnn": Forecast(60, 1e9, 0, 400e6, 300e6, 9)}
    with pytest.raises(
        UserError, match="05_train_maskrcnn is not begun: the run folder .* needs about 450 MB, 31. MB are free"
    ):
        run.check_disk("05_train_maskrcnn")
    run.check_disk("01_convert")  # is not forecast
    run.force = True
    run.check_disk("05_train_maskrcnn")
    run.found = {"05_train_maskrcnn": replace(run.found["05_train_maskrcnn"], disk_bytes=100e6)}
    run.force = False
    run.check_disk("05_train_maskrcnn")


def test_what_a_stage_writes_is_seen_while_it_is_under_way(tmp_path, monkeypatch):
    import time

    from cellkit.run import foretold

    monkeypatch.setattr(foretold, "LOOK_EVERY_S", 0.01)
    run = Foretold(tmp_path, None)
    place = tmp_path / "unfinished" / "01_convert"
    place.mkdir(parents=True)
    with run.watched("01_convert"):
        (place / "passing").write_bytes(bytes(7000))
        until = time.monotonic() + 20
        while run.most < 7000 and time.monotonic() < until:
            time.sleep(0.01)
        (place / "passing").unlink()
    assert run.most == 7000 and size_of(place) == 0


@pytest.mark.parametrize(("workers", "alone_s"), [(1, 40.0), (4, 50.0)])
def test_seconds_of_several_processes_do_not_add_up(tmp_path, monkeypatch, workers, alone_s):
    (tmp_path / "c.yaml").write_text(f"{CONFIG}workers: {workers}\n")
    run = Foretold(tmp_path, load_config(tmp_path / "c.yaml"))
    run.found, run.plan = {"01_convert": Forecast(45, 1e9)}, SimpleNamespace(speeds={})
    spent = {"seconds": 50.0, "processor_s": 40.0 * workers, "arithmetic": {"threads": 1, "device": "cpu"}}
    manifest = {"stages": {"01_convert": spent | {"outputs": {}, "also": {}}}, "forecast": noted(run.found)}
    run.note("01_convert", manifest, tmp_path / "no_copy")
    assert manifest["forecast"]["01_convert"]["took_undisturbed_s"] == alone_s


def test_what_is_not_of_the_run_is_not_freed_by_forgetting(tmp_path):
    assert freed_by_forgetting(tmp_path / "not_there") == 0
    for name, size in (("images/a.png", 50), ("own_data/large.tif", 9000), ("unfinished/05/last", 7)):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(bytes(size))
    listed = {"outputs": {"images": {"path": "images", "sha256": ""}}, "also": {"images/a.png": ""}}
    write_json(tmp_path / MANIFEST, {"format": FORMAT, "stages": {"01_convert": listed}, "attempts": {}})
    assert freed_by_forgetting(tmp_path) == 57
    (tmp_path / MANIFEST).write_text("damaged")
    assert freed_by_forgetting(tmp_path) == 7
