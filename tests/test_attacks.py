"""Ten attacks by files, names and addresses that came from others, met at the command line; SECURITY.md lists them.

Each leaves a sign where it succeeds: a file written or read where none may be, a connection, a formula, memory.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import socket
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import yaml
from fault_cases import CELL, CELLS, GREY, coco_file, config, refused, save, table  # noqa: F401
from repo_cases import ROOT

from cellkit.errors import UserError
from cellkit.files import write_frame
from cellkit.modules import load
from cellkit.run.folder import Run

SECURITY = (ROOT / "SECURITY.md").read_text(encoding="utf-8")


class Touch:
    """Runs a command when it is unpickled."""

    def __init__(self, sign: Path):
        self.sign = sign

    def __reduce__(self):
        return os.system, (f"touch '{self.sign}'",)


@pytest.fixture
def sign(tmp_path):
    """A path that an attack makes where it succeeds; looked for when the test ends."""
    path = tmp_path / "elsewhere" / "attacked"
    path.parent.mkdir()
    yield path
    assert not path.exists(), "the attack succeeded"


def test_every_attack_is_listed_with_its_test():
    texts = [path.read_text(encoding="utf-8") for path in Path(__file__).parent.rglob("test_*.py")]
    here = {name for text in texts for name in re.findall(r"^def (test_attack_\w+)", text, re.MULTILINE)}
    assert here == set(re.findall(r"`(test_attack_\w+)`", SECURITY)) and len(here) >= 10


# ---- programs inside files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_attack_01_pickle_in_a_checkpoint(refused, tmp_path, sign, protocol):
    save(tmp_path / "a.png", GREY.astype(np.uint8))
    torch.save({"w": torch.zeros(2), "x": Touch(sign)}, tmp_path / "evil.pth", pickle_protocol=max(protocol, 2))
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Touch(sign), protocol))
    (tmp_path / "evil.safetensors").write_bytes(pickle.dumps(Touch(sign), protocol))
    for name in ("evil.pth", "evil.pkl", "evil.safetensors"):
        told = refused("predict", tmp_path / name, tmp_path / "a.png", "-o", tmp_path / "found.json")
        assert name in told or "evil.json" in told
    package = tmp_path / "package.zip"
    about = {"type": "model", "weights": {"pytorch_state_dict": {"source": "evil.pth"}}}
    with zipfile.ZipFile(package, "w") as archive:
        archive.writestr("rdf.yaml", yaml.safe_dump(about))
        archive.write(tmp_path / "evil.pth", "evil.pth")
    refused("predict", package, tmp_path / "a.png", "-o", tmp_path / "found.json")


def test_attack_02_pickle_in_a_seg_file(refused, tmp_path, sign):
    for name, value in {"dict": {"masks": CELLS, "x": Touch(sign)}, "array": [Touch(sign)]}.items():
        np.save(tmp_path / f"{name}_seg.npy", np.array(value, dtype=object), allow_pickle=True)
        assert f"{name}_seg.npy" in refused("coco", tmp_path / f"{name}_seg.npy", "-o", tmp_path / "c.json")


TAGS = ("!!python/object/apply:os.system [touch '{}']", "!!python/object/new:subprocess.Popen [[touch, '{}']]")


@pytest.mark.parametrize("tag", TAGS)
def test_attack_03_yaml_tags(refused, tmp_path, sign, tag):
    (tmp_path / "c.yaml").write_text(f"name: {tag.format(sign)}\n")
    refused("run", tmp_path / "c.yaml", "--run", tmp_path / "r")
    refused("check", tmp_path / "c.yaml")
    with zipfile.ZipFile(tmp_path / "package.zip", "w") as archive:
        archive.writestr("rdf.yaml", f"type: model\nname: {tag.format(sign)}\n")
    refused("predict", tmp_path / "package.zip", tmp_path, "-o", tmp_path / "found.json")


def test_attack_03_yaml_that_multiplies(refused, tmp_path):
    """A hundred bytes that would be 10^9 words where they are printed."""
    lines = [
        "a0: &a0 [x, x, x, x, x, x, x, x, x, x]",
        *(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]" for k in range(1, 9)),
    ]
    text = "\n".join([*lines, "type: model", "name: *a8", "license: *a8", ""])
    (tmp_path / "c.yaml").write_text(text)
    refused("check", tmp_path / "c.yaml")
    for kind, content in {"anchors": text, "deep": "[" * 20_000, "long": "a: " + "x" * 3_000_000}.items():
        with zipfile.ZipFile(tmp_path / f"{kind}.zip", "w") as archive:
            archive.writestr("rdf.yaml", content)
        assert f"{kind}.zip" in refused("predict", tmp_path / f"{kind}.zip", tmp_path, "-o", tmp_path / "found.json")


# ---- files that lead elsewhere -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../elsewhere/attacked", "/{}", "a/../../elsewhere/attacked", "..\\elsewhere\\attacked"]
)
def test_attack_04_zip_slip(refused, tmp_path, sign, name):
    name = name.format(str(sign)[1:])
    for kind in ("package.zip", "a_rois.zip"):
        with zipfile.ZipFile(tmp_path / kind, "w") as archive:
            archive.writestr("rdf.yaml" if kind == "package.zip" else "1.roi", "type: model")
            archive.writestr(name, "attacked")
    refused("predict", tmp_path / "package.zip", tmp_path, "-o", tmp_path / "found.json")
    refused("coco", tmp_path / "a_rois.zip", "-o", tmp_path / "c.json")


def test_attack_06_links_out_of_a_folder(said, refused, tmp_path, monkeypatch):
    secret = save(tmp_path / "elsewhere" / "secret.png", GREY.astype(np.uint8))
    before = secret.read_bytes()
    save(tmp_path / "in" / "a.png", GREY.astype(np.uint8))
    (tmp_path / "in" / "b.png").symlink_to(secret)
    (tmp_path / "in" / "more").symlink_to(secret.parent)
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.png").symlink_to(secret)
    code, _, err = said("convert", tmp_path / "in", "-o", out, "--nuclei", 0)
    assert code == 3 and err.count("leads out of") == 1, err  # and a folder that is a link is not gone into
    assert secret.read_bytes() == before and not (out / "a.png").is_symlink(), "a link is replaced, not followed"
    found = tmp_path / "found.json"
    found.symlink_to(secret)
    assert said("predict", "threshold", tmp_path / "in", "-o", found, "--nuclei", 0)[0] == 3
    assert secret.read_bytes() == before


def test_attack_06_a_run_folder_that_clears_what_it_links_to(tmp_path, monkeypatch):
    monkeypatch.delenv("CELLKIT_RUNNER", raising=False)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("mine")
    for version in (1, 2):
        stage = Run(tmp_path / "run").start("01_convert", {"version": version})
        stage.path("images/thesis.txt").write_text("mine")
        stage.done(images=stage.root / "images")
        if version == 1:  # as a folder that came from somebody else may be
            (tmp_path / "run" / "images" / "thesis.txt").unlink()
            (tmp_path / "run" / "images").rmdir()
            (tmp_path / "run" / "images").symlink_to(mine)
    assert (mine / "thesis.txt").read_text() == "mine"


PATHS = ("../elsewhere/secret.png", "{}", "in/../../elsewhere/secret.png", "..\\elsewhere\\secret.png")


@pytest.mark.parametrize("name", PATHS)
def test_attack_10_path_in_file_name(said, tmp_path, sign, name):
    """A path in COCO, labelme or VOC: nothing outside the folder is read as a picture, nothing is written there."""
    secret = save(tmp_path / "elsewhere" / "secret.png", np.zeros((3, 4), np.uint8))
    name = name.format(secret)
    content = json.loads(coco_file(tmp_path / "t.json", CELL).read_text())
    content["images"][0]["file_name"] = name
    root = tmp_path / "in"
    root.mkdir()
    (root / "t.json").write_text(json.dumps(content))
    shape = {"label": "cell", "shape_type": "polygon", "points": [[0, 0], [3, 0], [3, 2]]}
    labelme = {
        "imagePath": name,
        "imageData": None,
        "imageHeight": 3,
        "imageWidth": 4,
        "shapes": [shape],
        "version": "5",
    }
    (tmp_path / "lm").mkdir()
    (tmp_path / "lm" / "a.json").write_text(json.dumps(labelme))
    opened: list[str] = []
    listening = [True]
    sys.addaudithook(lambda event, given: opened.append(str(given[0])) if event == "open" and listening[0] else None)
    try:
        for source, folder in (("coco", root), ("labelme", tmp_path / "lm")):
            for item in load("source", source).read(folder, config(source)):
                with pytest.raises(UserError):
                    item.load()
        for form in ("tif", "png", "roi", "geojson"):
            code = said("labels", root / "t.json", "-o", tmp_path / f"out_{form}", "--format", form)[0]
            assert code in (0, 2)
    finally:
        listening[0] = False
    assert not [path for path in opened if "secret.png" in path], "read"
    assert sorted(path.name for path in secret.parent.iterdir()) == ["secret.png"], "written"


def test_attack_10_path_in_the_records_of_a_run(tmp_path):
    from cellkit.cells.dataset import read_image
    from cellkit.cells.records import ImageRecord

    secret = save(tmp_path / "elsewhere" / "secret.png", np.zeros((3, 4), np.uint8))
    (tmp_path / "run").mkdir()
    for path in (str(secret), "../elsewhere/secret.png", "images/../../elsewhere/secret.png"):
        with pytest.raises(UserError, match="outside"):
            read_image(ImageRecord("a", path, 3, 4), tmp_path / "run")


# ---- text that another program runs --------------------------------------------------------------------------------

FORMULAS = (
    "=cmd|' /C calc'!A0",
    "+1+1",
    "-1+1",
    "@SUM(A1)",
    "\t=1+1",
    "\r=1+1",
    "a\r=1+1",
    "\n=1+1",
    "\uff1d1+1",
    "\uff0b1",
    "\uff0d1",
    "\uff20a",
)


@pytest.mark.parametrize("text", FORMULAS)
def test_attack_07_csv_formula(tmp_path, text):
    """As a value, as the name of a column, and in every table that a command writes of names."""
    import pandas as pd

    frame = write_frame(tmp_path / "frame.csv", pd.DataFrame({text: [1.0], "name": [text]}))
    (row,) = table(frame)
    assert not [cell for cell in (*row, *row.values()) if re.match("[=+\\-@\\s\uff1d\uff0b\uff0d\uff20]", cell)], row
    from cellkit.files import as_cell, from_cell, write_table

    (row,) = table(write_table(tmp_path / "table.csv", [{text: 1, "name": text}]))
    assert not [cell for cell in (*row, *row.values()) if re.match("[=+\\-@\\s\uff1d\uff0b\uff0d\uff20]", cell)], row
    assert from_cell(as_cell(text)) == text


NAMES = (
    "<script>attacked()</script>",
    "<img src=x onerror=attacked()>",
    '"><svg onload=attacked()>',
    "javascript:attacked()",
)


def test_attack_08_html_in_names(tmp_path, monkeypatch):
    """In the name of a run, its images, classes, channels and reasons: text on the page of the report, and no more."""
    from html.parser import HTMLParser

    from cellkit.cells.records import ImageRecord, write_records
    from cellkit.config.reading import load_config
    from cellkit.errors import Quarantined
    from cellkit.pages.report import write_report

    monkeypatch.delenv("CELLKIT_RUNNER", raising=False)
    cfg = load_config(ROOT / "configs" / "demo.yaml", {})
    folder = tmp_path / NAMES[1].replace("/", "_")
    run = Run(folder)
    stage = run.start("01_convert", cfg.convert)
    records = [
        ImageRecord(
            f"a{k}", f"images/a{k}.png", 8, 8, cell_type=name, group=name, source=name, split="train", flags=(name,)
        )
        for k, name in enumerate(NAMES)
    ]
    stage.quarantine([Quarantined(name, name) for name in NAMES])
    stage.done(records=write_records(stage.path("records.csv"), records))
    html = write_report(folder, tmp_path / "report.html").read_text(encoding="utf-8")
    tags: list[tuple[str, dict]] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.append((tag, dict(attributes)))
    parser.feed(html)
    assert html.count("attacked()") > 4, "the names are on the page"
    assert not [tag for tag, _ in tags if tag in ("script", "svg", "iframe", "object", "embed", "base")]
    for _, attributes in tags:
        assert not [name for name in attributes if name.startswith("on")]
        assert not [value for value in attributes.values() if str(value).strip().lower().startswith("javascript:")]


def test_attack_08_html_in_names_on_the_slides(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "presentation"))
    import deck

    name = NAMES[2] + NAMES[0]
    draw = lambda figure: figure.text(0.1, 0.1, name)  # noqa: E731
    slide = deck.Slide(name=name, title=name, points=[name, f"$ {name}"], draw=draw, alt=name, foot=name)
    html = deck.write_html(deck.Deck(name, (slide,)), tmp_path / "slides.html").read_text(encoding="utf-8")
    assert html.count("attacked()") > 6 and "<script>attacked" not in html and "<svg onload" not in html


# ---- addresses -----------------------------------------------------------------------------------------------------


@pytest.fixture
def nobody_calls(monkeypatch):
    """Fail where a connection is opened."""
    called = []
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: called.append(address) or 1 / 0)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *given, **_: called.append(given) or 1 / 0)
    yield
    assert not called, f"the attack succeeded: {called}"


ADDRESSES = ("http://169.254.169.254/latest/meta-data", "file:///etc/passwd", "s3://bucket/a.zarr", "ftp://127.0.0.1/a")


@pytest.mark.parametrize("address", ADDRESSES)
def test_attack_09_an_address_where_a_path_belongs(said, nobody_calls, tmp_path, monkeypatch, address):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "a.png", GREY.astype(np.uint8))
    lines = {"convert": f"{{source: folder, path: '{address}'}}", "finetune": f"{{base: '{address}'}}",
             "label": f"{{use: '{address}', model: '{address}'}}"}  # fmt: skip
    for section, text in lines.items():
        (tmp_path / "c.yaml").write_text(f"{section}: {text}\n")
        code, out, err = said("check", "c.yaml")
        assert code == 2 and "Traceback" not in err + out, (section, out, err)
    for arguments in (["predict", address, "a.png", "-o", "f.json"], ["predict", "threshold", address, "-o", "f.json"],
                      ["inspect", address], ["convert", address, "-o", "out", "--nuclei", 0], ["coco", address, "-o", "c.json"],
                      ["score", address, address], ["run", address], ["run", "c.yaml", "--run", address, "--set", "name=x"],
                      ["measure", address, address, "-o", "c.csv"]):  # fmt: skip
        code, out, err = said(*arguments)
        assert code == 2 and "Traceback" not in err + out, (arguments, out, err)


def test_attack_09_an_address_inside_a_file(said, nobody_calls, tmp_path, monkeypatch):
    """Addresses that COCO files, model packages, OME-Zarr and XML carry are never asked."""
    address = ADDRESSES[0]
    content = json.loads(coco_file(tmp_path / "t.json", CELL).read_text())
    content["images"][0] |= {"coco_url": address, "flickr_url": address, "file_name": address + "/a.png"}
    (tmp_path / "t.json").write_text(json.dumps(content))
    assert said("coco", tmp_path / "t.json", "-o", tmp_path / "c.json")[0] in (0, 2)
    about = {"type": "model", "weights": {"pytorch_state_dict": {"source": address + "/w.pt"}}}
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        archive.writestr("rdf.yaml", yaml.safe_dump(about))
    assert said("predict", tmp_path / "p.zip", tmp_path, "-o", tmp_path / "f.json")[0] == 2
    xml = f"<!DOCTYPE a [<!ENTITY x SYSTEM '{address}'>]><annotation><filename>&x;</filename></annotation>"
    (tmp_path / "voc" / "Annotations").mkdir(parents=True)
    for encoding in ("utf-8", "utf-16"):
        (tmp_path / "voc" / "Annotations" / "a.xml").write_text(xml, encoding=encoding)
        save(tmp_path / "voc" / "JPEGImages" / "a.png", GREY.astype(np.uint8))
        for item in load("source", "voc").read(tmp_path / "voc", config("voc")):
            with pytest.raises(UserError):
                item.load()
    tifffile.imwrite(
        tmp_path / "a.tif", GREY, description=f"<!DOCTYPE a [<!ENTITY x SYSTEM '{address}'>]><OME>&x;</OME>"
    )
    assert said("inspect", tmp_path / "a.tif")[0] in (0, 2)
