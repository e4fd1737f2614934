"""The benchmark of forecasts: a row for each run, also for those that were not timed."""

from __future__ import annotations

import sys

import bench_forecast
import pytest

from cellkit.files import write_json

STAGES = ("01_convert", "03_finetune_cellpose")


def run_with(folder, seconds, done=True):
    """A run of two stages that were foretold."""
    took = (
        {"took_peak_bytes": 2e9, "took_disk_bytes": 4e6, "took_kept_bytes": 3e6, "took_undisturbed_s": 20.0}
        if done
        else {}
    )
    said = {"seconds": seconds, "peak_bytes": 1e9, "disk_bytes": 5e6, "kept_bytes": 3e6, **took}
    folder.mkdir()
    write_json(folder / "manifest.json", {"stages": dict.fromkeys(STAGES, {}), "forecast": dict.fromkeys(STAGES, said)})
    return folder


@pytest.mark.parametrize(("seconds", "cells"), [(10.0, "20 | 40 | -50 %"), (None, "- | 40 | -")])
def test_a_run_has_a_row_whether_it_was_timed_or_not(tmp_path, monkeypatch, capsys, seconds, cells):
    folder = run_with(tmp_path / "run", seconds)
    monkeypatch.setattr(sys, "argv", ["bench_forecast.py", str(folder)])
    bench_forecast.main()
    row = capsys.readouterr().out.splitlines()[-1]
    assert row == f"| run | {cells} | 1,000 | 2,000 | -50 % | 8 | 7 | +14 % |"


def test_a_run_of_which_nothing_was_foretold_is_named(tmp_path, monkeypatch, capsys):
    write_json(tmp_path / "manifest.json", {"stages": {}})
    monkeypatch.setattr(
        sys, "argv", ["bench_forecast.py", str(tmp_path), str(run_with(tmp_path / "run", 1.0, done=False))]
    )
    bench_forecast.main()
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2 and err.count("no stage that is done was foretold") == 2
