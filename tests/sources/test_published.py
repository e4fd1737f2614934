"""BBBC039, Sartorius, HepG2 and Huh7: their own layouts, their own splits, their own traps."""

import gzip
import os
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from cellkit.config.sections import ChannelsConfig, ConvertConfig, SplitConfig
from cellkit.errors import UserError
from cellkit.evaluate.submission import handed_in
from cellkit.formats.label_images import write_labels
from cellkit.modules import load
from cellkit.sources.bbbc039 import regions_of_colours
from cellkit.sources.hepg2_huh7 import read_text_labels
from cellkit.sources.ingest import convert_images, detect_kind
from cellkit.sources.inspection import classes_of, inspect_folder

DATA = Path(os.environ.get("CELLKIT_DATA") or Path(__file__).parents[3] / "shared" / "data")
RNG = np.random.default_rng(0)


def config(source, classes=("nucleus",), nuclei=0, **options):
    return ConvertConfig(source=source, classes=classes, channels=ChannelsConfig(nuclei=nuclei), **options)


def listed(root, cfg):
    return {item.image_id: item for item in load("source", cfg.source).read(Path(root), cfg)}


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


# ---- BBBC039 -------------------------------------------------------------------------------------------------------
def field(well, site):
    return f"IXMtest_{well}_s{site}_w1051DAA7C-7042-435F-99F0-1E847D9B42CB"


def bbbc039(
    root, fields=(("A02", 1, "training"), ("B03", 2, "training"), ("C04", 3, "validation"), ("D05", 4, "test"))
):
    """Write BBBC039 in its layout: 16-bit images, RGBA masks of three colours, lists that name the masks."""
    lists = defaultdict(list)
    for well, site, name in fields:
        stem = field(well, site)
        lists[name].append(f"{stem}.png\n")
        (root / "images").mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(root / "images" / f"{stem}.tif", RNG.integers(100, 4000, (20, 30), dtype=np.uint16))
        mask = np.zeros((20, 30, 4), np.uint8)
        mask[..., 3] = 255
        if site != 2:  # the second field has no nucleus
            mask[2:6, 2:6, 0], mask[2:6, 6:10, 0], mask[6:9, 2:10, 0] = 1, 2, 3  # three that touch
            mask[12:15, 2:6, 0], mask[15:17, 6:8, 0] = 1, 1  # one that meets itself at a corner
            mask[12:15, 20:24, 0] = 1
        save(root / "masks" / f"{stem}.png", mask)
    for name, lines in lists.items():
        (root / "metadata").mkdir(exist_ok=True)
        (root / "metadata" / f"{name}.txt").write_text("".join(lines))


def test_bbbc039_touching_nuclei_of_different_colour_are_two(tmp_path):
    bbbc039(tmp_path)
    items = listed(tmp_path, config("bbbc039"))
    assert [(item.group, item.split, item.cell_type) for item in items.values()] == [
        ("A02", "train", "nucleus"), ("B03", "train", "nucleus"), ("C04", "val", "nucleus"), ("D05", "test", "nucleus"),
    ]  # fmt: skip
    cells = items[field("A02", 1)].load().instances
    assert sorted(cells.areas_px.tolist()) == [12, 16, 16, 16, 24] and cells.class_ids.tolist() == [1] * 5
    assert not len(items[field("B03", 2)].load().instances), "an empty field stays, without a nucleus"
    made = convert_images(config("bbbc039"), tmp_path, tmp_path / "run")
    assert len(made.images.records) == 4 and not made.quarantined
    assert detect_kind(tmp_path) == "bbbc039" and inspect_folder(tmp_path)[0]["objects"] == 15


def test_bbbc039_parts_that_do_not_fit_are_named(tmp_path):
    root = tmp_path / "in"
    bbbc039(
        root,
        [("A02", 1, "training"), ("B03", 3, "training"), ("C04", 4, "test"), ("D05", 5, "test"), ("E06", 6, "test")],
    )
    stems = [field(*one) for one in (("A02", 1), ("B03", 3), ("C04", 4), ("D05", 5), ("E06", 6))]
    save(root / "masks" / f"{stems[1]}.png", np.zeros((20, 29, 4), np.uint8))
    (root / "masks" / f"{stems[2]}.png").unlink()
    (root / "images" / f"{stems[3]}.tif").unlink()
    save(root / "masks" / f"{stems[4]}.png", np.zeros((20, 30), np.uint16))
    tifffile.imwrite(root / "images" / "IXMtest_P24_s9_w1.tif", np.arange(600, dtype=np.uint16).reshape(20, 30))
    items = listed(root, config("bbbc039", split=SplitConfig(train=1.0, val=0.0, test=0.0)))
    assert items["IXMtest_P24_s9_w1"].split == "", "in no list: left out"
    made = convert_images(config("bbbc039"), root, tmp_path / "run")
    said = {q.item: q.reason for q in made.quarantined}
    assert [record.image_id for record in made.images.records] == [stems[0]] and len(said) == 5
    assert (
        "is 20 x 30 px, its label image" in said[f"images/{stems[1]}.tif"]
        and "20 x 29" in said[f"images/{stems[1]}.tif"]
    )
    assert "has no mask" in said[f"images/{stems[2]}.tif"] and "not in images/" in said[f"images/{stems[3]}"]
    assert "is a I;16 picture" in said[f"images/{stems[4]}.tif"]


def test_bbbc039_masks_that_lie_are_refused(tmp_path):  # faults 2 and 52
    root = tmp_path / "in"
    bbbc039(root)
    first, _, third, _ = sorted((root / "masks").iterdir())
    (tmp_path / "out.png").write_bytes(first.read_bytes())
    third.unlink()
    third.symlink_to(tmp_path / "out.png")
    first.write_bytes(first.read_bytes()[:90])
    said = {q.item: q.reason for q in convert_images(config("bbbc039"), root, tmp_path / "run").quarantined}
    assert "cannot be read" in said[f"images/{first.stem}.tif"] and "leads out of" in said[f"images/{third.stem}.tif"]


@settings(deadline=None)  # the first call imports
@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(0, 3)))
def test_regions_of_colours_are_those_of_scikit_image(colours):
    from skimage.measure import label

    ours, theirs = regions_of_colours(colours), label(colours)  # what the authors of BBBC039 use
    assert ours.max(initial=0) == theirs.max(initial=0) and ((ours > 0) == (theirs > 0)).all()
    assert len(np.unique(np.stack([ours.ravel(), theirs.ravel()], 1), axis=0)) == len(np.unique(theirs))


# ---- Sartorius -----------------------------------------------------------------------------------------------------
HEADER = "id,annotation,width,height,cell_type"


def sartorius(root, rows, header=HEADER, images=("a", "b")):
    for name in images:
        save(root / "train" / f"{name}.png", RNG.integers(0, 255, (3, 4), dtype=np.uint8))
    (root / "train.csv").write_text("\n".join([header, *rows]) + "\n")


def test_sartorius_rle_counts_along_rows_and_overlaps_stay(tmp_path):
    sartorius(tmp_path, ["a,2 1 6 1,4,3,astro", "a,5 3,4,3,astro", "b,1 12,4,3,cort"])
    items = listed(tmp_path, config("sartorius", ("cort", "astro")))
    cells = items["a"].load().instances
    assert cells.mask(0).tolist() == [[0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert cells.mask(1).tolist() == [[0, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]]
    assert cells.overlapping and cells.class_ids.tolist() == [2, 2] and items["a"].cell_type == "astro"
    assert items["b"].load().instances.class_ids.tolist() == [1] and items["a"].group == ""
    assert detect_kind(tmp_path) == "sartorius" and classes_of(tmp_path, "sartorius") == ("astro", "cort")


def test_sartorius_test_pictures_are_test_images_without_truth(tmp_path):
    names = [f"{k:02d}" for k in range(10)]
    sartorius(tmp_path / "in", [f"{name},1 2,4,3,astro" for name in names], images=names)
    for name in ("t1", "t2"):
        save(tmp_path / "in" / "test" / f"{name}.png", RNG.integers(0, 255, (3, 4), dtype=np.uint8))
    (tmp_path / "in" / "test" / "t3.png").write_bytes(b"torn")
    (tmp_path / "in" / "sample_submission.csv").write_text("id,predicted\nt2,1 1\nt3,\nt1,\n")
    made = convert_images(config("sartorius", ("astro",)), tmp_path / "in", tmp_path / "run")
    kept = {record.image_id: record.split for record in made.images.records}
    assert kept["t1"] == kept["t2"] == "test" and len(made.images.records) == 12
    assert made.images.made_by == ["truth"] * 10 + [""] * 2 and len(made.images.with_truth()) == 10
    asked = handed_in({"originals": tmp_path / "run" / "originals.csv"}, "test")
    assert [(one.id, one.shape) for one in asked] == [("t1", (3, 4)), ("t2", (3, 4)), ("t3", None)]
    assert "t3.png cannot be read" in asked[2].note and [one.item for one in made.quarantined] == ["test/t3.png"]
    (tmp_path / "in" / "sample_submission.csv").unlink()
    convert_images(config("sartorius", ("astro",)), tmp_path / "in", tmp_path / "run")
    assert handed_in({"originals": tmp_path / "run" / "originals.csv"}, "test") == asked  # not those held out of train/


def test_test_pictures_of_a_competition_are_no_split_that_the_others_lack(tmp_path, caplog):
    names = [f"{k:02d}" for k in range(10)]
    sartorius(tmp_path / "s", [f"{name},1 2,4,3,astro" for name in names], images=names)
    for name in ("t1", "t2"):
        save(tmp_path / "s/test" / f"{name}.png", RNG.integers(0, 255, (3, 4), dtype=np.uint8))
    for more in ({}, {"published_split": False}, {"max_images": 4}):
        found = listed(tmp_path / "s", config("sartorius", ("astro",), **more))
        assert {name for name, item in found.items() if item.own_id in ("t1", "t2")} == {"t1", "t2"}, "none is thinned"
        assert found["t1"].split == found["t2"].split == "test"
    for k in range(6):
        save(tmp_path / f"f/{k}.png", np.full((24, 32), k, np.uint8))
        write_labels(tmp_path / f"f/{k}_masks.tif", np.ones((24, 32), np.uint8))
    save(tmp_path / "f/test/t.png", np.zeros((24, 32), np.uint8))
    assert listed(tmp_path / "f", config("folder"))["test_t"].split == "test"
    assert "their names tell none" not in caplog.text
    write_labels(tmp_path / "f/test/t_masks.tif", np.ones((24, 32), np.uint8))
    listed(tmp_path / "f", config("folder"))
    assert "the split of 6 of 7 images is drawn: their names tell none, others' do" in caplog.text


def test_sartorius_samples_are_never_torn_apart_by_a_split_by_group(tmp_path):  # fault 58
    names = [f"{k:02d}" for k in range(24)]
    rows = [f"{name},1 2,4,3,astro,astros[hippo]_D1-{int(name) % 6}_Ph_1" for name in names]
    sartorius(tmp_path, rows, f"{HEADER},sample_id", names)
    items = listed(tmp_path, config("sartorius", ("astro",), split_by="group"))
    splits = defaultdict(set)
    for item in items.values():
        splits[item.group].add(item.split)
    assert len(splits) == 6 and all(len(names) == 1 for names in splits.values())
    assert set().union(*splits.values()) == {"train", "val", "test"}


def test_sartorius_rows_that_do_not_fit_set_their_image_aside(tmp_path):
    root = tmp_path / "in"
    rows = ["good,1 2,4,3,astro", "long,11 3,4,3,astro", "odd,1,4,3,astro", "size,1 2,3,4,astro", "gone,1 2,4,3,astro",
            "two,1 2,4,3,astro", "two,1 2,4,3,cort", "void,,4,3,astro"]  # fmt: skip
    sartorius(root, rows, images=("good", "long", "odd", "size", "two", "bare", "void"))
    made = convert_images(config("sartorius", ("astro", "cort")), root, tmp_path / "run")
    said = {Path(q.item).stem: q.reason for q in made.quarantined}
    expected = {"long": "leaves its image of 12 px", "odd": "has 1 numbers", "size": "says size is 4 x 3 px",
                "gone": "1 cell in train.csv, no picture", "two": "differ in cell type", "bare": "has no truth",
                "void": "a cell without a pixel"}  # fmt: skip
    assert [record.image_id for record in made.images.records] == ["good"] and set(said) == set(expected)
    assert all(part in said[name] for name, part in expected.items())
    (root / "train.csv").write_text("id,annotation\n")
    with pytest.raises(UserError, match="lacks the columns width, height, cell_type"):
        listed(root, config("sartorius"))


# ---- HepG2 and Huh7 ------------------------------------------------------------------------------------------------
def text_labels(path, labels):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(" ".join(map(str, row)) for row in np.asarray(labels).tolist())
    path.write_bytes(gzip.compress(text.encode() + b"\n"))


def test_hepg2_huh7_numbers_tell_line_and_split(tmp_path):
    labels = np.zeros((10, 12), int)
    labels[1:4, 1:4], labels[5:9, 5:11] = 1, 3
    for number in (1, 2, 3, 8, 23, 26, 27, 28):
        save(tmp_path / "images" / f"{number}.jpg", RNG.integers(0, 255, (10, 12, 3), dtype=np.uint8))
        text_labels(tmp_path / "annotations" / f"{number}.gz", labels)
    cfg = config("hepg2_huh7", ("HepG2", "Huh7"), "blue", split=SplitConfig(train=0.6, val=0.4, test=0.0))
    items = listed(tmp_path, cfg)
    assert list(items) == ["1", "2", "3", "8", "23", "26", "27", "28"]
    assert [items[n].cell_type for n in ("1", "23", "26")] == ["HepG2", "HepG2", "Huh7"]
    assert [items[n].split for n in ("2", "8", "26")] == ["test", "", "test"]
    carved = Counter(items[n].split for n in ("1", "3", "23", "27", "28"))
    assert set(carved) == {"train", "val"}, "validation is drawn from the published training images"
    cells = items["27"].load().instances
    assert cells.areas_px.tolist() == [9, 24] and cells.class_ids.tolist() == [2, 2]
    assert detect_kind(tmp_path) == "hepg2_huh7" and classes_of(tmp_path, "hepg2_huh7") == ("HepG2", "Huh7")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (gzip.compress(b"1 2\n3\n"), "cannot be read"),
        (gzip.compress(b"1 2.5\n"), "cannot be read"),
        (gzip.compress(b"1 x\n"), "cannot be read"),
        (gzip.compress(b"-1 0\n"), "numbers from -1"),
        (gzip.compress(b"0 99999999999\n"), "to 99999999999"),
        (gzip.compress(b" \n"), "cannot be read"),
        (gzip.compress(b"0 1\n" * 999)[:-20], "cannot be read"),
        (gzip.compress(b"0 1\n" * 999)[:20] + b"x" * 40, "cannot be read"),
        (b"1 2\n", "cannot be read"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_text_labels_are_refused(tmp_path, content, said):
    (tmp_path / "1.gz").write_bytes(content)
    with pytest.raises(UserError, match=said):
        read_text_labels(tmp_path / "1.gz")


def test_text_labels_that_unpack_to_too_much_are_refused(tmp_path, monkeypatch):  # fault 44
    monkeypatch.setattr("cellkit.sources.hepg2_huh7.MOST_TEXT_BYTES", 1000)
    (tmp_path / "1.gz").write_bytes(gzip.compress(b"0 1\n" * 251))
    with pytest.raises(UserError, match="1001 bytes unpacked"):
        read_text_labels(tmp_path / "1.gz")


# ---- real data -----------------------------------------------------------------------------------------------------
@pytest.mark.realdata
def test_sartorius_as_kaggle_gives_it():
    cfg = config("sartorius", ("astro", "cort", "shsy5y"))
    items = listed(DATA / "sartorius", cfg)
    assert len(items) == 85 and Counter(i.cell_type for i in items.values()) == {"astro": 30, "cort": 30, "shsy5y": 25}
    loaded = {name: item.load() for name, item in items.items()}
    assert sum(len(one.instances) for one in loaded.values()) == 7806
    for name, one in loaded.items():
        assert one.image.shape == (520, 704, 3)
        assert set(one.instances.class_ids.tolist()) == {cfg.classes.index(items[name].cell_type) + 1}


@pytest.mark.realdata
def test_hepg2_and_huh7_of_koyuncu():
    items = listed(DATA / "hepg2_huh7", config("hepg2_huh7", ("HepG2", "Huh7"), "blue"))
    counts = {name: len(item.load().instances) for name, item in items.items()}
    assert len(items) == 41 and sum(counts.values()) == 3726
    parts = defaultdict(int)
    for name, item in items.items():
        parts[{"val": "train"}.get(item.split, item.split or "unused"), item.cell_type] += counts[name]
    assert parts["train", "HepG2"] + parts["train", "Huh7"] == 785, "as the authors state them"
    assert (parts["test", "HepG2"], parts["test", "Huh7"], parts["unused", "HepG2"]) == (985, 891, 1065)


@pytest.mark.realdata
def test_samples_of_bbbc039_are_pictures_without_masks_and_one_pair():
    items = listed(DATA / "bbbc039_samples" / "normalised_png", config("folder"))
    assert len(items) == 3 and all(item.load().instances is None for item in items.values())
    (pair,) = listed(DATA / "bbbc039_samples" / "raw_pair", config("folder", pair=("image", "label"))).values()
    with pytest.raises(UserError, match="label.png is a colour picture"):
        pair.load()


def test_two_files_of_one_name_in_subfolders_are_refused_one_by_one(tmp_path):
    for name in ("images/0.png", "images/previews/0.png", "images/1.png", "masks/1.png", "masks/old/1.png", "images/2.png",
                 "masks/2.png", "masks/0.png"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 9, np.uint8)).save(tmp_path / name)
    items = {item.image_id: item for item in load("source", "bbbc039").read(tmp_path, config("bbbc039"))}
    for name, told in (("0", "images/0.png and images/previews/0.png"), ("1", "masks/1.png and masks/old/1.png")):
        with pytest.raises(UserError, match=f"2 files are called {name}: {told}\nkeep one"):
            items[name].load()
    assert len(items["2"].load().instances) == 1 and len(items) == 3
