"""What Cellpose-SAM costs is told before it starts, and that a GPU is missing."""

from __future__ import annotations

import numpy as np
import pytest
from sam_cases import small_checkpoint, small_network

from cellkit.models import cellpose_sam as sam


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return small_checkpoint(tmp_path_factory.mktemp("sam") / "small")


def test_says_what_it_costs(small, drawn):
    found = sam.cost(sam.TrainSettings(base=str(small), late_blocks=1, precision="float32"), *drawn[0])
    assert min(found.step_s, found.find_s, found.search_s, found.prepare_s) > 0
    assert (found.device, found.parameters) == ("cpu", sum(value.numel() for value in small_network().parameters()))
    assert 0 < found.trained < found.parameters and found.search_s > found.find_s


def test_says_once_that_a_gpu_is_missing(small, monkeypatch, capsys):
    segment = sam.load(small)
    [*segment([np.zeros((40, 30, 3), np.uint8)])]
    assert "GPU" not in capsys.readouterr().err, "a small network is fast enough"
    monkeypatch.setattr(sam, "SLOW_S", 0.0)
    [*segment([np.zeros((40, 30, 3), np.uint8)] * 2)]
    assert capsys.readouterr().err.count("it is made for a GPU. cellpose_unet takes seconds") == 1
