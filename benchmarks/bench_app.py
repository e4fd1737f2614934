"""How soon the page of `cellkit app` shows what a moved threshold finds: `python benchmarks/bench_app.py [--sides 512 1024]`.

Starts the command and a browser without a screen (playwright, with a Chrome or Chromium of the machine), uploads drawn fields of
several sizes, lets the light starter see each once, and moves the threshold of its cell probability as a hand does. Milliseconds
of the clock, in the page: from the move to the frame that shows the first answer, and to that of the exact one, over 12 moves.
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

from cellkit.sources.drawn.files import write_fields

BROWSERS = ("google-chrome", "google-chrome-stable", "chromium", "chromium-browser")
MOVES = (-1.0, -2.0, 0.0, 1.0, -0.5, 0.5, 2.0, -1.5, 1.5, 0.2, -0.2, -3.0)
WANTED_MS = 200
PATIENCE_MS = 600_000  # of a large image on a slow machine
MOVE = """async ({name, value}) => {
  const status = document.querySelector("#status"), range = document.querySelector("#range_" + name);
  const shown = () => new Promise((then) => requestAnimationFrame(() => requestAnimationFrame(then)));
  const begun = performance.now(), told = {};
  const ended = new Promise((then) => {
    const watch = new MutationObserver(async () => {
      const exact = !status.textContent.includes("nearly");
      await shown();
      told.first ??= performance.now() - begun;
      if (exact) { watch.disconnect(); told.exact = performance.now() - begun; then(); }
    });
    watch.observe(status, { childList: true });
  });
  range.value = value;
  range.dispatchEvent(new Event("input"));
  range.dispatchEvent(new Event("change"));
  await ended;
  return told;
}"""


@contextmanager
def application(folder: Path, model: str):
    """The command in a process of its own: yield the address that it prints."""
    command = [sys.executable, "-m", "cellkit", "app", "--model", model, "--no-browser"]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as process:
        try:
            found = (re.search(r"http://127\.0\.0\.1:\d+/#\S+", line) for line in process.stderr)
            yield next(filter(None, found))[0]
        finally:
            process.terminate()


@contextmanager
def browser_page(address: str):
    """A page of a browser without a screen."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        path = next(filter(None, map(shutil.which, BROWSERS)), None)
        found = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = found.new_page(viewport={"width": 1300, "height": 850})
        page.set_default_timeout(PATIENCE_MS)
        page.goto(address)
        page.wait_for_selector("#model option", state="attached")
        yield page
        found.close()


def reactions(page, field: Path, model: str) -> tuple[int, list[dict[str, float]]]:
    """Return how many cells a model finds in a file, and the milliseconds of each move."""
    page.set_input_files("#file", field)
    page.wait_for_selector("body:not(.busy) #how:enabled")
    page.select_option(
        "#model", label=next(text for text in page.locator("#model option").all_inner_texts() if model in text)
    )
    page.select_option("#nuclei", label="0: DAPI")
    page.select_option("#cytoplasm", label="1: GFP")
    page.click("#find")
    page.wait_for_selector("#status:text-matches('^\\\\d+ cells?\\\\.')")
    cells = int(re.match(r"\d+", page.inner_text("#status"))[0])
    return cells, [page.evaluate(MOVE, {"name": "cellprob_threshold", "value": value}) for value in MOVES]


def main() -> int:
    """Print a row per size; exit code 1 where the first answer took longer than is wanted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--model", default="starter_light")
    given = parser.parse_args()
    slow = False
    print("| image | cells | first answer, ms: median, most | exact answer, ms: median, most |\n|---|---:|---:|---:|")
    with (
        tempfile.TemporaryDirectory() as made,
        application(Path(made), given.model) as address,
        browser_page(address) as page,
    ):
        for side in given.sides:
            folder = Path(made) / str(side)
            write_fields(folder, images_per_line=0, mixed_images=1, defect_images_per_line=0, size_px=side, seed=5)
            cells, times = reactions(page, folder / "mixed" / "mixed_01.ome.tif", given.model)
            first, exact = ([one[name] for one in times] for name in ("first", "exact"))
            told = " | ".join(f"{statistics.median(ms):.0f}, {max(ms):.0f}" for ms in (first, exact))
            print(f"| {side} x {side} px | {cells} | {told} |", flush=True)
            slow |= statistics.median(first) > WANTED_MS
    return int(slow)


if __name__ == "__main__":
    sys.exit(main())
