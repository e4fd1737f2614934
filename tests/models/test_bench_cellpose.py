"""The benchmark beside Cellpose 3: a step is counted as what it took, and what cannot be told is said."""

from __future__ import annotations

import math
import sys

import bench_cellpose
import pytest


def asked_of(monkeypatch, cpu_s, done):
    """Let a job of so many rounds or steps take these seconds of the processor, and do so many."""

    def measure(job, threads, folder, weights, count):
        return {"score": 0.5, "done": done(count), "cpu_s": cpu_s(count), "peak_gb": 1.0}

    monkeypatch.setattr(bench_cellpose, "measure", measure)


@pytest.mark.parametrize("images", [4, 8, 12, 32])
def test_whole_epochs_are_counted_by_their_crops(images, monkeypatch, tmp_path):
    trained = []
    monkeypatch.setattr(bench_cellpose, "read", lambda *_, **__: ([None] * images, [None] * images))
    monkeypatch.setattr(bench_cellpose.cellpose3, "train", lambda *_, **how: trained.append(how))
    _, done = bench_cellpose.theirs_train(tmp_path, "w", 8, str(tmp_path / "to"), 8, 64)
    (how,) = trained
    assert done == how["n_epochs"] * how["nimg_per_epoch"] / 8


def test_a_step_is_what_the_steps_that_were_taken_took(monkeypatch, tmp_path):
    asked_of(monkeypatch, lambda count: 10 + 3 * max(count, 4), lambda count: max(count, 4))  # an epoch is four steps
    assert bench_cellpose.each("theirs_train", 1, tmp_path, 2, 8, 3, "w")["cpu_s"] == 3
    with pytest.raises(SystemExit, match="ask for more --steps"):
        bench_cellpose.each("theirs_train", 1, tmp_path, 2, 3, 3, "w")


def test_what_takes_no_longer_is_not_told_as_a_speed(monkeypatch, tmp_path, capsys):
    asked_of(monkeypatch, lambda count: 10 - count, float)
    assert math.isnan(bench_cellpose.each("ours_find", 1, tmp_path, 1, 2, 1, "w")["cpu_s"])
    assert "ours_find: 2 took no longer than 1; ask for more" in capsys.readouterr().out


@pytest.mark.parametrize("options", [["--rounds", "2", "2"], ["--steps", "8", "2"], ["--rounds", "0", "2"]])
def test_fewer_have_to_be_fewer(options, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench_cellpose.py", *options])
    with pytest.raises(SystemExit):
        bench_cellpose.main()
    assert "the second number has to be the larger one" in capsys.readouterr().err
