"""A loaded model in the one loop: ahead in one process, opened once in each of several, the same answers in the same order."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellkit import finding, machine
from cellkit.cells.dataset import predict_all
from cellkit.cells.instances import Instances
from cellkit.config.sections import LabelConfig
from cellkit.errors import UserError
from cellkit.finding import Finder, opens_again, processes_for, processes_that_fit, threads_each
from cellkit.models import backend_module, backend_names, threshold
from cellkit.models.shared.contract import Segmenter
from cellkit.parallel import map_items
from cellkit.run.folder import Run

NAMES = ["good", "fine", "bad", "unreadable"]
REASONS = {"bad": "RuntimeError: no answer", "unreadable": "UserError: cut short"}


def in_pairs(images):
    """A model that takes two images at a time, and fails on images whose first pixel is 9."""
    held = []

    def answers():
        if any(image[0, 0, 0] == 9 for image in held):
            raise RuntimeError("no answer")
        yield from (Instances.empty(image.shape[:2]) for image in held)
        held.clear()

    for image in images:
        held.append(image)
        if len(held) == 2:
            yield from answers()
    yield from answers()


@opens_again
def opens(answer, told):
    """A model that says which process it is in, and notes there that it was opened."""
    with open(told, "a") as file:
        file.write(f"{os.getpid()} {answer}\n")
    return Segmenter(lambda image, left_out: (os.getpid(), answer), {})


def read(name):
    if name == "unreadable":
        raise UserError("cut short")
    return np.full((2, 2 + len(name), 3), 9 if "bad" in name else 0, np.uint8), name.upper()


def one_by_one(images):
    """The same, which takes one at a time."""
    for image in images:
        yield from in_pairs([image])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(NAMES), max_size=7), st.sampled_from([in_pairs, one_by_one]))
def test_only_the_image_at_fault_is_lost(names, segment):
    done, failed = map_items(Finder(segment, read, names), names, "find")
    assert [one.about for one in done if one] == [name.upper() for name in names if name not in REASONS]
    assert all(one is None or one.cells.shape == (2, 2 + len(name)) for one, name in zip(done, names, strict=True))
    assert [(one.item, one.reason) for one in failed] == [(n, REASONS[n]) for n in names if n in REASONS]


def test_one_image_at_a_time():
    taken = []
    find = Finder(one_by_one, lambda name: taken.append(name) or read(name), NAMES)
    find("good")
    assert taken == ["good"]


def test_a_model_that_answers_too_little_is_no_endless_loop():
    with pytest.raises(RuntimeError, match="gave no answer"):
        Finder(lambda images: iter(()), read, ["good"])("good")


class TestSeveralProcesses:
    def test_the_model_is_opened_once_in_each_and_told_apart_from_the_next(self, tmp_path):
        opened = tmp_path / "opened.txt"
        for answer in ("first", "second"):
            find = Finder(opens(answer, opened), read, workers=2)
            done, failed = map_items(find, ["good"] * 12, "find", workers=2)
            assert not failed and {one.cells[1] for one in done} == {answer}
            lines = [line.split() for line in opened.read_text().splitlines()]
            there = sorted(int(p) for p, said in lines if said == answer and int(p) != os.getpid())
            assert there == sorted({one.cells[0] for one in done})

    def test_a_notebook_uses_as_many_as_its_section_says(self, drawn, tmp_path):
        segment = opens("here", tmp_path / "opened.txt")
        assert {pid for pid, _ in predict_all(segment, drawn)} == {os.getpid()}
        stage = Run(tmp_path / "run").start("02_label_with_cellpose", LabelConfig(workers=2))
        assert stage.workers == 2 and os.getpid() not in {pid for pid, _ in predict_all(segment, drawn)}

    def test_each_uses_its_share_of_the_threads(self, monkeypatch):
        torch = pytest.importorskip("torch")  # not at the top: worker processes import this file
        monkeypatch.setattr("joblib.cpu_count", lambda: 8)
        monkeypatch.delenv("OMP_NUM_THREADS")
        assert [threads_each(n) for n in (2, 3, 8, 20)] == [4, 2, 1, 1]
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        assert [threads_each(n) for n in (2, 8)] == [2, 1]
        before, find = torch.get_num_threads(), Finder(in_pairs, read, workers=4)
        try:
            pickle.loads(pickle.dumps(find))("good")
            assert torch.get_num_threads() == 2
        finally:
            torch.set_num_threads(before)

    def test_an_image_that_fails_ends_predict_all_and_is_named(self, drawn):
        broken = drawn.with_records(
            [drawn.records[0], *(r.__class__(**{**r.__dict__, "path": "gone.png"}) for r in drawn.records[1:])]
        )
        for workers in (1, 2):
            with pytest.raises(UserError, match=r"gone\.png"):
                predict_all(threshold.load(), broken, workers=workers)


class TestHowMany:
    def test_one_where_the_model_cannot_be_opened_again(self, drawn, capsys):
        plain = Segmenter(lambda image, left_out: Instances.empty(image.shape[:2]), {})
        assert predict_all(plain, drawn, "mine", workers=4) == [Instances.empty(r.shape[:2]) for r in drawn.images()]
        assert "mine: in one process, as this model cannot be opened in others" in capsys.readouterr().err
        with pytest.raises(TypeError, match="@opens_again"):
            pickle.dumps(plain)

    def test_one_on_a_gpu(self, monkeypatch, capsys):
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        assert processes_for(threshold.load(), 3, "label") == 1
        assert "label: in one process, not 3: each would hold the model on the GPU" in capsys.readouterr().err
        assert processes_for(threshold.load(), 1, "label") == 1 and not capsys.readouterr().err

    def test_as_many_as_fit_the_memory(self, monkeypatch, capsys):
        monkeypatch.setattr(finding, "memory", lambda: {"total_gb": 9.0, "free_gb": 2.0})
        assert processes_that_fit(8, [900_000_000] * 20, "label") == 2
        said = capsys.readouterr().err
        assert "label: 2 processes, not 8, which would take about 7.2 GB of memory; 2.0 GB are free" in said
        assert processes_that_fit(8, [10] * 20, "label") == 8 and processes_that_fit(4, [], "label") == 4

    @pytest.mark.parametrize("name", backend_names())
    def test_every_backend_opens_again(self, name):
        assert hasattr(backend_module(name).load, "__wrapped__"), "decorate it with @opens_again"


def test_what_workers_spend_is_counted(drawn):
    before = machine.processor_s()
    predict_all(threshold.load(), drawn, workers=2)
    assert machine.processor_s() - before > 0 and machine._ELSEWHERE_S[0] > 0
