"""`cellkit app` without a browser: what a page is answered, what it is refused, and what two pages share."""

from __future__ import annotations

import io
import json
import pickle
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from app_cases import Page, field, finished, parsed, serving, wrong  # noqa: F401 - fixtures
from conftest import encode_png
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cellkit.cells.instances import Instances
from cellkit.errors import UserError
from cellkit.formats.coco_reading import read_coco
from cellkit.measure.images import measure_files, write_cells
from cellkit.microscope.convert import Conversion
from cellkit.models import threshold
from cellkit.models.shared.live import Reading
from cellkit.pages.app import desk as desks
from cellkit.pages.app import readings, session
from cellkit.pages.app.guard import HEADERS
from cellkit.pages.app.views import View, cells_bytes, view_of
from cellkit.predict.files import predict_files
from cellkit.predict.model import find_model

CHANNELS = {"nuclei": "0", "cytoplasm": "1"}


@pytest.fixture(scope="module")
def served():
    with serving() as (desk, client):
        yield desk, client


@pytest.fixture
def page(served):
    desk, client = served
    page = Page(client, desk.key)
    yield page
    desk.leave(page.about["page"])


@pytest.fixture
def opened(page, field):
    """A page whose image was looked at."""
    facts = page.upload("mixed 01.ome.tif", field.read_bytes()).json()
    looked = page.look(**CHANNELS)
    assert looked.status_code == 200, looked.text
    return page, facts, looked.json()


# ---- what a page does ------------------------------------------------------------------------------------------------
def test_a_file_is_opened_and_its_cells_are_those_of_a_prediction(opened, field, tmp_path):
    page, facts, looked = opened
    assert (facts["height"], facts["width"], facts["planes"], facts["channels"]) == (160, 160, 3, ["DAPI", "GFP"])
    assert [one["name"] for one in looked["movable"]] == ["diameter_px", "min_area_px"]
    name, content = page.download("coco")
    assert name == "mixed_01.json"
    (tmp_path / "page.json").write_bytes(content)
    how = Conversion({"nuclei": 0, "cytoplasm": 1}, always=True)
    done = predict_files(find_model("threshold"), [field], tmp_path / "predict.json", conversion=how)
    ours, theirs = (read_coco(tmp_path / f"{name}.json") for name in ("page", "predict"))
    assert ours.instances == theirs.instances and done.cells > 5
    shown = page.cells(changed={})
    assert np.array_equal(shown["labels"], ours.instances[0].paint())
    assert shown["area"].tolist() == ours.instances[0].areas_px.tolist() and shown["exact"]


def test_a_moved_setting_reaches_counts_and_files(opened):
    page, _, _ = opened
    every = page.cells(changed={"diameter_px": 30})
    least = int(np.median(every["area"])) + 1
    fewer = page.cells(changed={"diameter_px": 30, "min_area_px": least}, quick=True)
    assert 0 < len(fewer["area"]) < len(every["area"]) and fewer["area"].min() >= least
    left_out = [sum(one["left_out"].values()) for one in (fewer, every)]
    assert left_out[0] - left_out[1] == len(every["area"]) - len(fewer["area"])
    name, content = page.download("labels")
    labels = np.asarray(Image.open(io.BytesIO(content)))
    assert name == "mixed_01.tif" and np.array_equal(labels, fewer["labels"])
    assert len(page.cells(changed={"diameter_px": 30})["area"]) == len(every["area"])
    now = page.download("labels", changed={"diameter_px": 30, "min_area_px": least})[1]
    assert now == content, "a file is of the settings that the page shows, also where its cells are not read yet"
    wrong(page.call("download", what="labels", changed={"min_area_px": -1}), "min_area_px is -1")


def test_the_table_is_that_of_measure(opened, field, tmp_path):
    page, _, _ = opened
    (tmp_path / "cells.json").write_bytes(page.download("coco")[1])
    name, content = page.download("table")
    (tmp_path / "mixed_01.ome.tif").write_bytes(field.read_bytes())
    measured = measure_files([tmp_path / "mixed_01.ome.tif"], tmp_path / "cells.json").table
    table = pd.read_csv(io.BytesIO(content))
    assert name == "mixed_01_cells.csv" and list(table) == list(measured)
    assert content == write_cells(tmp_path / "cells.csv", measured).read_bytes(), (
        "also the scores, as a COCO file has them"
    )


@pytest.mark.parametrize("what, name", [("rois", "mixed_01_rois.zip"), ("geojson", "mixed_01.geojson")])
def test_cells_are_taken_to_other_programs(opened, what, name):
    page, _, _ = opened
    given, content = page.download(what)
    assert given == name and len(content) > 500


def test_channels_have_to_be_chosen_where_a_file_does_not_show_which_is_which(page, field):
    page.upload("a.ome.tif", field.read_bytes())
    text = wrong(page.look(), "2 channels", "0 DAPI", "neither nuclei nor cytoplasm is chosen", "choose the channel")
    assert "--nuclei" not in text, "there is no command line on a page"
    assert page.look(nuclei="0").status_code == 200
    wrong(page.look(nuclei="DAPI; rm"), "choose one of the list")
    wrong(page.look(nuclei="7"), "a.ome.tif")
    wrong(page.look(nuclei="0", frame=9), "no image 10")
    wrong(page.look(nuclei="0", frame="x"), "are numbers")
    wrong(page.look(nuclei="0", diameter_px=-3), "diameter_px is -3")
    wrong(page.call("look", model=99), "no model is chosen")


def test_a_diameter_is_in_px_of_the_file(opened):
    page, _, _ = opened
    looked = page.look(**CHANNELS, diameter_px="24").json()
    assert {one["name"]: one["value"] for one in looked["movable"]}["diameter_px"] == 24


def test_a_picture_in_colours_needs_no_channels_and_a_large_one_is_shown_in_parts(page, monkeypatch):
    tile = np.zeros((90, 120, 3), np.uint8)
    tile[20:50, 30:70, 1] = 200
    image = np.tile(tile, (3, 2, 1))
    facts = page.upload("large.png", encode_png(image)).json()
    assert facts["colours"] and page.look().status_code == 200
    monkeypatch.setattr("cellkit.pages.app.views.MOST_SIDE_PX", 100)
    monkeypatch.setattr(session, "view_of", lambda shape, asked=None: view_of(shape, asked, 100))
    whole = page.cells(changed={})
    assert whole["view"] == View(0, 0, 240, 270, 3)._asdict() and whole["labels"].shape == (90, 80)
    assert len(whole["area"]) == 6, "of all pixels"
    part = page.cells(changed={}, view={"left": 120, "top": 90, "width": 60, "height": 70})
    assert part["view"]["step"] == 1 and part["labels"].shape == (70, 60)
    inside = (part["labels"] > 0) == (image[90:160, 120:180, 1] > 0)
    assert inside.mean() > 0.95, "all but the edges, which were smoothed"
    answer = page.call("picture", view=part["view"])
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(answer.content))), image[90:160, 120:180])
    assert json.loads(answer.headers["x-cellkit-view"]) == part["view"]
    assert Image.open(io.BytesIO(page.call("picture").content)).size == (80, 90)
    outside = {"left": 999, "top": 0, "width": 5, "height": 5}
    wrong(page.call("cells", changed={}, view=outside), "no part")
    wrong(page.call("picture", view={"left": "x"}), "without numbers")


@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 40), st.integers(1, 4))
def test_cells_arrive_as_they_were_sent(seed, height, width, step):
    labels = np.random.default_rng(seed).integers(0, 4, (height, width)).astype(np.int32)
    view = View(0, 0, width, height, step)
    found = parsed(cells_bytes({"a": "<é>"}, {"score": np.array([0.5, 1.0]), "class": np.array([1, 2])}, labels, view))
    assert np.array_equal(found["labels"], labels[::step, ::step]) and found["a"] == "<é>"
    assert found["score"].tolist() == [0.5, 1.0] and found["class"].tolist() == [1, 2]


# ---- what is refused -------------------------------------------------------------------------------------------------
def png_claiming(side: int) -> bytes:
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunk = lambda kind, body: struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))  # noqa: E731
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("notes.docx", b"hello", "no file that can be dropped"),
        ("a.ome.zarr", b"hello", "no file that can be dropped"),
        ("<b>&.npy", pickle.dumps([1]), "no file that can be dropped"),
        ("movie.avi", b"RIFF", "is video, which is not read"),
        ("empty.tif", b"", "is empty (0 bytes)"),
        ("text.tif", b"no picture at all", "text.tif"),
        ("cut.png", encode_png(np.zeros((9, 9, 3), np.uint8))[:30], "cut.png"),
        ("bomb.png", png_claiming(60_000), "bomb.png"),
        ("", b"hello", "no file that can be dropped"),
    ],
)
def test_wrong_files_are_refused_with_what_to_do_and_leave_the_image_that_is_open(opened, served, name, content, words):
    page, _, _ = opened
    before = len(page.cells(changed={})["area"])
    wrong(page.upload(name, content), words)
    assert len(page.cells(changed={})["area"]) == before
    own = served[0].pages[page.about["page"]][0].folder
    assert [path.name for path in own.rglob("*") if path.is_file() and "out" not in path.parts] == ["mixed_01.ome.tif"]


def test_an_upload_has_a_limit_and_a_file_before_is_removed(field):
    with serving(most_mb=0.2) as (desk, client):
        page = Page(client, desk.key)
        assert page.about["most_mb"] == 0.2
        assert page.upload("a.png", encode_png(np.zeros((9, 9, 3), np.uint8))).status_code == 200
        wrong(page.upload("b.png", b"0" * 300_000), "larger than 0 MB", "--most-mb")
        chunks = (b"0" * 50_000 for _ in range(9))
        answer = client.post("/api/upload", params={"name": "c.png"}, content=chunks, headers=page.headers)
        wrong(answer, "larger than 0 MB")
        assert page.upload("d.png", encode_png(np.ones((9, 9, 3), np.uint8))).status_code == 200
        assert [path.name for path in desk.folder.rglob("*.*")] == ["d.png"]
        wrong(page.call("cells", changed={}), "no cells are looked for", "Find cells")
        wrong(page.call("cells", changed={"x" * 200_000: 1}), "more than")
        assert client.post("/api/cells", content=b"[1", headers=page.headers).status_code == 422


def test_a_file_stays_below_the_folder_of_its_page(page, served, field):
    page.upload("../../../etc/x.ome.tif", field.read_bytes())
    desk, _ = served
    own = desk.pages[page.about["page"]][0].folder
    assert [path.name for path in own.rglob("*.tif")] == ["x.ome.tif"]
    assert own.stat().st_mode & 0o077 == 0, "nobody else reads it"


@pytest.mark.parametrize("sign", ["x", "é", "细", "\U0001d49c"])
def test_a_long_name_of_any_script_is_taken_and_cut_where_a_sign_ends(page, field, sign):
    assert page.upload(sign * 200 + ".ome.tif", field.read_bytes()).status_code == 200
    page.look(**CHANNELS)
    for what in ("rois", "table"):
        name, _ = page.download(what)
        assert name.startswith(sign * 20) and len(name.encode()) < 200


@pytest.mark.parametrize(
    "changed, words",
    [({"channels": "both"}, "cannot be moved"), ({"min_area_px": -1}, "min_area_px is -1"), ({"min_area_px": "x"}, "is 'x'"),
     ({"diameter_px": 1e9}, "diameter_px is"), ({"diameter_px": "auto"}, "no number")],
)  # fmt: skip
def test_settings_are_checked_as_everywhere(opened, changed, words):
    page, _, _ = opened
    wrong(page.call("cells", changed=changed), words)


def test_only_our_own_page_is_answered(served):
    desk, client = served
    key = {"key": desk.key}
    for headers, words in (
        ({"host": "evil.example:8000"}, "not 'evil.example:8000'"),
        ({"host": "127.0.0.1.evil.example"}, "not"),
        ({"origin": "http://evil.example"}, "another site"),
        ({"origin": "http://127.0.0.1:9"}, "another site"),
        ({"origin": "null"}, "another site"),
        ({"sec-fetch-site": "cross-site"}, "another site"),
        ({"sec-fetch-site": "same-site"}, "another site"),
    ):
        wrong(client.post("/api/begin", json=key, headers=headers), words, status=403)
        wrong(client.get("/", headers=headers), words, status=403)
    for other in ({}, {"key": desk.key + "x"}, {"key": "é"}):
        wrong(client.post("/api/begin", json=other), "does not know the key", status=401)
    wrong(client.post("/api/begin", content=b'{"key": "\\ud800"}'), "does not know the key", status=401)
    wrong(client.post("/api/look", json={}), "open the address", status=401)
    wrong(client.put("/"), "PUT is not answered", status=403)
    own = {"origin": "http://127.0.0.1:8000", "sec-fetch-site": "same-origin"}
    assert client.post("/api/begin", json=key, headers=own).status_code == 200


def test_nothing_else_is_served_and_nothing_is_fetched(served):
    _, client = served
    for path in (
        "/..%2f..%2fpyproject.toml",
        "/templates/report.html.j2",
        "/api/begin",
        "/%2e%2e/app.py",
        "/etc/passwd",
    ):
        assert client.get(path).status_code in (404, 405)
    for path in ("/", "/app.js", "/app.viewer.js", "/app.css"):
        answer = client.get(path)
        assert answer.status_code == 200
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS
        away = answer.text.replace("http://www.w3.org/2000/svg", "")
        assert "//" not in away.replace("// ", "") and "innerHTML" not in away and "@import" not in away


# ---- two at once -----------------------------------------------------------------------------------------------------
def test_two_pages_share_nothing_but_models_and_compute_one_after_the_other(served, field, monkeypatch):
    desk, client = served
    at_once, most, whole = [], [], threshold.SeenByThreshold

    def slow(image):
        at_once.append(1)
        most.append(len(at_once))
        time.sleep(0.2)
        at_once.pop()
        return whole(image)

    monkeypatch.setattr(threshold, "SeenByThreshold", slow)
    first, second = Page(client, desk.key), Page(client, desk.key)
    bright = np.zeros((50, 60, 3), np.uint8)
    bright[10:30, 10:30] = [0, 250, 0]
    first.upload("one.ome.tif", field.read_bytes())
    second.upload("two.png", encode_png(bright))
    with ThreadPoolExecutor(3) as pool:
        looks = [pool.submit(first.look, **CHANNELS), pool.submit(second.look)]
        time.sleep(0.05)
        places = [page.call("place").json()["before"] for page in (first, second)]
        assert [look.result().status_code for look in looks] == [200, 200]
    assert most == [1, 1] and sorted(places) in ([0, 1], [0, 0])
    counts = [len(page.cells(changed={})["area"]) for page in (first, second)]
    assert counts[0] > 5 and counts[1] == 1
    second.cells(changed={"min_area_px": 1000})
    assert [len(page.cells(changed={})["area"]) for page in (first, second)] == counts
    assert first.download("coco")[0] == "one.json" and second.download("coco")[0] == "two.json"
    folder = desk.pages[second.about["page"]][0].folder
    with ThreadPoolExecutor(1) as pool:
        with desk.pages[second.about["page"]][0].lock:  # as while an image is looked at
            left = pool.submit(client.post, "/api/leave", json={"page": second.about["page"]})
            assert first.call("place").status_code == 200 and not left.done(), (
                "nobody else waits for a page that leaves"
            )
        left.result()
    assert not folder.exists() and second.call("cells", changed={}).status_code == 401
    assert len(first.cells(changed={})["area"]) == counts[0]
    client.post("/api/leave", json={"page": first.about["page"]})


def test_pages_are_limited_and_idle_ones_make_room(served, monkeypatch):
    desk, client = served
    monkeypatch.setattr(desks, "MOST_PAGES", len(desk.pages) + 1)
    kept = Page(client, desk.key)
    wrong(client.post("/api/begin", json={"key": desk.key}), "pages are open", "close one")
    monkeypatch.setattr(desks, "IDLE_S", -1.0)
    assert client.post("/api/begin", json={"key": desk.key}).status_code == 200
    assert kept.call("place").status_code == 401


def test_a_model_is_loaded_once_and_few_are_kept(served):
    desk, _ = served
    models = [desk.model([one.spec for one in desk.offered].index("threshold"), px) for px in (20.0, 20.0, 30.0, 40.0)]
    loaded = [desk.loaded(model, 1.0) for model in models]
    assert loaded[0] is loaded[1] and len(desk._models) == desks.KEPT_MODELS


def test_who_waits_is_told_that_it_ended():
    queue, begun, go_on = desks.OneAtATime(), threading.Event(), threading.Event()
    under_way = queue.submit("a", lambda: begun.set() or go_on.wait(10))
    waiting = queue.submit("b", lambda: 1)
    assert begun.wait(10) and (queue.before("a"), queue.before("b"), queue.before("c")) == (0, 1, 0)
    queue.close()
    for future in (under_way, waiting, queue.submit("c", lambda: 1)):
        with pytest.raises(UserError, match="has ended"):
            future.result(10)
    go_on.set()


def test_a_page_that_left_while_it_waited_is_not_computed():
    queue, begun, go_on, done = desks.OneAtATime(), threading.Event(), threading.Event(), []
    queue.submit("a", lambda: begun.set() or go_on.wait(10))
    assert begun.wait(10)
    waiting, last = queue.submit("b", lambda: done.append(1)), queue.submit("c", lambda: 7)
    assert waiting.cancel()
    go_on.set()
    assert (last.result(10), done) == (7, [])
    queue.close()


def test_a_fault_of_ours_is_said_and_the_page_goes_on(opened, monkeypatch, capsys):
    page, _, _ = opened
    monkeypatch.setattr(readings, "cells_bytes", lambda *_: 1 / 0)
    wrong(page.call("cells", changed={}), "ZeroDivisionError", "terminal", status=500)
    assert "line" in (told := capsys.readouterr().err) and "ZeroDivisionError" in told
    monkeypatch.undo()
    assert page.call("cells", changed={}).status_code == 200


# ---- a run -----------------------------------------------------------------------------------------------------------
def test_the_worst_images_of_a_run_are_shown_and_opened(finished):
    with serving(finished) as (desk, client):
        page = Page(client, desk.key)
        told = page.call("gallery").json()
        assert page.about["run"].endswith("small & <run>") and told["why"] == ""
        scores = [float(one["words"].split()[2].rstrip(";")) for one in told["worst"]]
        assert scores == sorted(scores) and len(scores) >= 2
        assert Image.open(io.BytesIO(page.call("thumb", number=0).content)).width > 200
        facts = page.call("worst", number=0).json()
        assert facts["name"] == told["worst"][0]["image"] and page.look().status_code == 200
        for number in (-1, 99, "0", None):
            wrong(page.call("worst", number=number), "no such image")
        before = sorted(path.name for path in finished.rglob("*"))
        assert page.upload("a.png", encode_png(np.zeros((9, 9, 3), np.uint8))).status_code == 200
        assert sorted(path.name for path in finished.rglob("*")) == before, "the run's own picture stays"


def test_a_picture_outside_the_run_folder_is_not_opened(finished, tmp_path, monkeypatch):  # noqa: F811
    with serving(finished) as (desk, client):
        page = Page(client, desk.key)
        data, found, places = desk._worst_data
        (finished.parent / "secret.png").write_bytes(encode_png(np.zeros((9, 9, 3), np.uint8)))
        elsewhere = [replace(record, path="../secret.png") for record in data.records]
        monkeypatch.setattr(desk, "_worst_data", (replace(data, records=elsewhere), found, places))
        wrong(page.call("worst", number=0), "outside the run folder")
        assert (
            page.call("thumb", number=0).status_code in (422, 500)
            and b"PNG" not in page.call("thumb", number=0).content
        )


def test_a_run_that_was_not_scored_has_no_gallery_and_says_why(tmp_path):
    (tmp_path / "run").mkdir()
    with serving(tmp_path / "run") as (desk, client):
        told = Page(client, desk.key).call("gallery").json()
    assert told["worst"] == [] and "attribution.csv" in told["why"]


def test_cells_of_a_model_with_classes_keep_them(served, field, monkeypatch):
    """A page gets the classes of its cells as numbers, and their names once."""
    desk, client = served
    page = Page(client, desk.key)
    page.upload("a.png", encode_png(np.full((9, 9, 3), (0, 5, 9), np.uint8)))
    two = Instances.from_labels(np.pad(np.array([[1, 1, 2]]), ((0, 8), (0, 6))), class_ids=[2, 1])
    monkeypatch.setattr(threshold.SeenByThreshold, "cells", lambda *_, **__: two)
    assert page.look().status_code == 200
    assert page.cells(changed={"min_area_px": 1})["class"].tolist() == [2, 1]


def test_a_quick_look_does_not_wait_for_an_exact_reading_and_the_newest_is_kept(served):
    desk, client = served
    page, began, go = Page(client, desk.key), threading.Event(), threading.Event()
    page.upload("a.png", encode_png(np.full((9, 9, 3), (0, 5, 9), np.uint8)))
    assert page.look().status_code == 200
    own = desk.page(page.about["page"])
    cells = own.found.cells

    def read(changed, left_out, quick: bool) -> Reading:
        if not quick:
            began.set()
            assert go.wait(60)
        return Reading(cells, not quick)

    own.read = read
    with ThreadPoolExecutor(1) as pool:
        exact = pool.submit(page.cells, changed={"min_area_px": 5})
        try:
            assert began.wait(60)
            assert not page.cells(changed={"min_area_px": 6}, quick=True)["exact"]
        finally:
            go.set()
        assert exact.result()["exact"]
    assert own.found.changed == {"min_area_px": 6} and not own.found.exact
