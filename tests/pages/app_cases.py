"""A page of `cellkit app` without a browser, for its tests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from report_cases import evaluate, make_run

from cellkit.pages.app.desk import Desk
from cellkit.pages.app.server import application
from cellkit.sources.drawn.files import write_fields


@pytest.fixture(scope="module")
def field(tmp_path_factory) -> Path:
    """A drawn field of two lines as a microscope file, (3, 2, 160, 160)."""
    folder = tmp_path_factory.mktemp("fields")
    write_fields(folder, images_per_line=0, mixed_images=1, defect_images_per_line=0, size_px=160, seed=5)
    return folder / "mixed" / "mixed_01.ome.tif"


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run that was scored, in a folder whose name a page must not take for HTML."""
    run, cfg = make_run(tmp_path_factory.mktemp("runs") / "small & <run>")
    stage, _ = evaluate(run, cfg)
    stage.done(scores=stage.path("scores.csv"), summary=stage.path("summary.json"))
    return run.folder


class Page:
    """One page: calls, with the secret name it was given."""

    def __init__(self, client, key: str):
        self.client = client
        self.about = client.post("/api/begin", json={"key": key}).json()
        self.headers = {"x-cellkit-page": self.about["page"]}

    def call(self, name: str, **said):
        return self.client.post(f"/api/{name}", json=said, headers=self.headers)

    def upload(self, name: str, content: bytes):
        return self.client.post("/api/upload", params={"name": name}, content=content, headers=self.headers)

    def number_of(self, name: str) -> int:
        return [one["name"] for one in self.about["models"]].index(name)

    def look(self, model: str = "threshold", **said):
        return self.call("look", model=self.number_of(model), **said)

    def cells(self, **said) -> dict:
        answer = self.call("cells", **said)
        assert answer.status_code == 200, answer.text
        return parsed(answer.content)

    def download(self, what: str, **said) -> tuple[str, bytes]:
        answer = self.call("download", what=what, **said)
        assert answer.status_code == 200, answer.text
        return json.loads(answer.headers["x-cellkit-name"]), answer.content


def parsed(content: bytes) -> dict:
    """Return what `cells_bytes` wrote, as the page's script reads it; with the label image of the view."""
    long = int(np.frombuffer(content, "<u4", 1)[0])
    head, at = json.loads(content[4 : 4 + long]), 4 + long
    for name, kind, count in head["arrays"]:
        head[name] = np.frombuffer(content, f"<{kind}4", count, at)
        at += 4 * count
    assert at == len(content)
    view = head["view"]
    labels = np.zeros(-(-view["height"] // view["step"]) * -(-view["width"] // view["step"]), np.int64)
    for start, length, cell in zip(head["start"], head["length"], head["cell"], strict=True):
        labels[start : start + length] = cell
    return head | {"labels": labels.reshape(-1, -(-view["width"] // view["step"]))}


@contextmanager
def serving(run=None, model=None, most_mb: float = 50) -> Iterator[tuple]:
    """A desk, and a client of its page; all is ended and removed afterwards."""
    from starlette.testclient import TestClient

    desk = Desk(run, model)
    with TestClient(application(desk, most_mb), base_url="http://127.0.0.1:8000") as client:
        yield desk, client
    assert not desk.folder.exists()


def wrong(answer, *words: str, status: int = 422) -> str:
    """Check that a call was refused with what came and what to do; return both."""
    assert answer.status_code == status, answer.text
    said = answer.json()
    assert said["problem"] and said["remedy"]
    text = f"{said['problem']}\n{said['remedy']}"
    assert all(word in text for word in words), text
    return text
