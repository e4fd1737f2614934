"""`cellkit app` in a real browser, without a screen: dropped, found, moved, taken away."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from app_cases import field, finished  # noqa: F401 - fixtures
from repo_cases import ROOT

BROWSERS = ("google-chrome", "google-chrome-stable", "chromium", "chromium-browser")
CELLS = re.compile(r"^(\d+) cells?\.$")
NASTY = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def browser():
    """A browser of the machine; of these tests everybody is told why they are skipped."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright, of cellkit[test], is not installed")
    with playwright.sync_playwright() as started:
        own = started.chromium.executable_path
        path = next(filter(None, map(shutil.which, BROWSERS)), own if Path(own).is_file() else None)
        if path is None:
            pytest.skip(f"no browser here: {', '.join(BROWSERS)}")
        alone = ["--no-sandbox"] if hasattr(os, "getuid") and os.getuid() == 0 else []  # a sandbox refuses root
        found = started.chromium.launch(executable_path=path, args=alone)
        yield found
        found.close()


@pytest.fixture(scope="module")
def app(finished, tmp_path_factory):  # noqa: F811
    """The command as a person starts it: its process, the address it printed, and the folder of its files."""
    folder = tmp_path_factory.mktemp("temporary")
    env = os.environ | {"TMPDIR": str(folder), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "cellkit", "app", str(finished), "--model", "threshold", "--no-browser"]
    process = subprocess.Popen(command, env=env, cwd=folder, stderr=subprocess.PIPE, text=True)
    try:
        found = (re.search(r"http://127\.0\.0\.1:\d+/#\S+", line) for line in process.stderr)
        yield process, next(filter(None, found))[0], folder
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.fixture
def tab(browser, app):
    """A page in a context of its own, and what it complained of or fetched from elsewhere."""
    context = browser.new_context(viewport={"width": 1300, "height": 850}, accept_downloads=True)
    context.set_default_timeout(120_000)  # of a busy machine
    page, told = context.new_page(), []
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("dialog", lambda dialog: told.append(dialog.message))
    page.on("console", lambda line: told.append(line.text) if line.type in ("error", "warning") else None)
    elsewhere = re.compile(r"^(?!http://127\.0\.0\.1:|blob:|data:)")
    page.on("request", lambda asked: told.append(asked.url) if elsewhere.match(asked.url) else None)
    page.goto(app[1])
    page.wait_for_selector("#model option", state="attached")
    yield page, told
    context.close()


def cells_of(page) -> int:
    """Wait for an exact count, and return it."""
    from playwright.sync_api import expect

    expect(page.locator("#status")).to_have_text(CELLS, timeout=120_000)
    return int(CELLS.match(page.inner_text("#status"))[1])


def upload(page, path: Path) -> None:
    page.set_input_files("#file", path)
    page.wait_for_selector("body:not(.busy) #how:enabled")


def is_drawn_anew(page, before: bytes) -> bool:
    """Tell whether the picture looks otherwise than before, soon."""
    for _ in range(20):
        if page.locator("#picture").screenshot() != before:
            return True
        page.wait_for_timeout(200)
    return False


@pytest.mark.slow
def test_an_image_is_dropped_cells_found_a_threshold_moved_and_labels_taken(tab, field, tmp_path):  # noqa: F811
    page, told = tab
    assert page.is_disabled("#find")
    upload(page, field)
    assert "160 × 160 px" in page.inner_text("#facts") and "DAPI, GFP" in page.inner_text("#facts")
    page.select_option("#nuclei", label="0: DAPI")
    page.select_option("#cytoplasm", label="1: GFP")
    page.click("#find")
    before = cells_of(page)
    assert before > 5 and page.inner_text("#counts td:nth-child(2)") == str(before)
    with_lines = page.locator("#picture").screenshot()
    page.uncheck("#outlines")
    assert is_drawn_anew(page, with_lines), "outlines are drawn"
    page.check("#outlines")
    page.locator("#range_min_area_px").fill("400")  # as a hand does: input, then change
    page.wait_for_selector("#notes li:has-text('min_area_px = 400')")
    after = cells_of(page)
    assert 0 < after < before
    assert page.input_value("#number_min_area_px") == "400"
    with page.expect_download() as waiting:
        page.click("[data-what=labels]")
    waiting.value.save_as(tmp_path / waiting.value.suggested_filename)
    labels = tifffile.imread(tmp_path / "mixed_01.tif")
    assert labels.shape == (160, 160) and len(np.unique(labels)) == after + 1
    assert np.bincount(labels.ravel())[1:].min() >= 400
    assert page.locator("#histogram rect").count() > 1
    page.focus("#picture")
    fit = page.locator("#picture").screenshot()
    page.keyboard.press("+")
    page.keyboard.press("ArrowRight")
    assert is_drawn_anew(page, fit)
    box = page.locator("#picture").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert re.match(r"row \d+, column \d+", page.inner_text("#under"))
    page.click("#reset")
    page.wait_for_selector(f"#counts td:text-is('{before}')")
    assert told == []


@pytest.mark.slow
def test_what_is_wrong_is_said_and_names_are_text(tab, field, tmp_path):  # noqa: F811
    page, told = tab
    upload(page, field)
    page.click("#find")
    page.wait_for_selector("#error:visible")
    assert "neither nuclei nor cytoplasm is chosen" in page.inner_text("#problem") and page.inner_text("#remedy")
    page.click("#dismiss")
    wrong = tmp_path / "notes.docx"
    wrong.write_text("hello")
    page.set_input_files("#file", wrong)
    page.wait_for_selector("#error:visible")
    assert page.inner_text("#problem") == "'notes.docx' is no file that can be dropped here"
    nasty = tmp_path / f"{NASTY.replace('/', '')}.ome.tif"
    planes = np.zeros((2, 40, 40), np.uint8)
    planes[:, 10:20, 10:20] = 200
    tifffile.imwrite(nasty, planes, ome=True, metadata={"axes": "CYX", "Channel": {"Name": [NASTY, "b"]}})
    upload(page, nasty)
    assert NASTY in page.inner_text("#facts") and page.is_hidden("#error")
    page.select_option("#nuclei", index=2)
    page.click("#find")
    assert cells_of(page) == 1
    assert page.locator("main img").count() == 0
    assert [line for line in told if "422" not in line] == []


@pytest.mark.slow
def test_an_exact_reading_that_comes_late_hides_no_newer_complaint(tab, field):  # noqa: F811
    page, _ = tab
    upload(page, field)
    page.select_option("#nuclei", label="0: DAPI")
    page.click("#find")
    before, held = cells_of(page), []

    def not_exact_or_held(route) -> None:
        if route.request.post_data_json["quick"]:
            answer = route.fetch()
            route.fulfill(response=answer, body=answer.body().replace(b'"exact": true', b'"exact":false'))
        else:
            held.append(route)

    page.route("**/api/cells", not_exact_or_held)
    page.locator("#range_min_area_px").fill("400")
    page.wait_for_selector("#status:has-text('nearly')")
    for _ in range(600):
        if not held:
            page.wait_for_timeout(50)
    assert held, "the exact reading is asked for"
    page.fill("#number_min_area_px", "-5")
    page.keyboard.press("Enter")
    page.wait_for_selector("#error:visible")
    held[0].continue_()
    assert 0 < cells_of(page) < before, "those of 400 px are shown"
    assert page.is_visible("#error") and "min_area_px" in page.inner_text("#problem")


@pytest.mark.slow
def test_the_worst_images_are_shown_and_a_second_page_has_its_own(tab, browser, app):
    page, told = tab
    page.wait_for_selector("#worst li:first-child img[src^=blob]")
    assert page.inner_text("#about").endswith("small & <run>")
    first = page.inner_text("#worst li:first-child strong")
    page.click("#worst li:first-child button")
    assert cells_of(page) > 0 and first in page.inner_text("#facts")
    other = browser.new_page()
    other.goto(app[1])
    other.wait_for_selector("#worst li")
    assert other.inner_text("#status") == "No image yet." and other.is_hidden("#facts")
    other.close()
    assert told == []


@pytest.mark.slow
def test_who_has_not_the_key_sees_nothing(browser, app):
    page = browser.new_page()
    page.goto(app[1].split("#")[0])
    page.wait_for_selector("#error:visible")
    assert "does not know the key" in page.inner_text("#problem")
    page.close()


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C is another signal here")
def test_ctrl_c_ends_it_and_removes_the_files(app):
    process, _, folder = app
    assert list(folder.glob("cellkit-app-*"))
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    assert not list(folder.glob("cellkit-app-*"))
    assert "Traceback" not in process.stderr.read()
