"""The benchmark of training recipes: what it counts as training, and how many images it takes."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import ablate_training

from cellkit.models import cellpose_unet as unet


def test_the_time_of_a_run_is_that_of_its_training_alone(drawn, tmp_path, monkeypatch):
    clock, seen = [0.0], []

    def taking(seconds, name):
        def work(train, *given):
            clock[0] += seconds
            seen.append((name, given))
            return tmp_path / f"{name}.safetensors"

        return work

    monkeypatch.setattr(ablate_training.time, "process_time", lambda: clock[0])
    monkeypatch.setattr(unet, "train", taking(5, "trained"))
    monkeypatch.setattr(unet, "calibrate", taking(7, "read"))
    monkeypatch.setattr(ablate_training, "scores_of", lambda path, *_, **__: [float(path.stem == "read")])
    given = SimpleNamespace(minutes=1, equal="cpu")
    section = unet.TrainSettings(flow_threshold=0.8)
    one = drawn.subset([0])
    row = ablate_training.run("base", one, one, [], section, Path("b"), 0, given, {"base": 6.0}, tmp_path)
    assert (row["cpu_s"], row["score"], row["steps"]) == (5.0, 1.0, 10)
    (_, (watched, trained, _)), (_, (read, _)) = seen
    assert len(watched) == 0 and (trained.flow_threshold, trained.cellprob_threshold, trained.min_area_px) == (
        0.8,
        0,
        15,
    )
    assert (read.base, read.cellprob_threshold) == (str(tmp_path / "trained.safetensors"), None), "searched afterwards"


@pytest.mark.parametrize("name", ["two_lines", "dkfz", "dsb2018"])
@pytest.mark.parametrize("most", [3, None])
def test_the_number_of_images_is_limited_in_every_set(name, most, tmp_path, monkeypatch):
    class Read(Exception):
        pass

    def convert(config, root, folder):
        raise Read(config.max_images)

    monkeypatch.setattr("cellkit.sources.ingest.convert_images", convert)
    with pytest.raises(Read) as caught:
        ablate_training.images_of(name, tmp_path, tmp_path / "out", most)
    assert caught.value.args == (most,)
