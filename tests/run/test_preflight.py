"""The look ahead: each problem of data and settings is told before anything runs, all at once, and as the stages see it."""

import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from preflight_cases import SIZE, converted, here, lab, labels, look, mask, refused, stack, texts, warned  # noqa: F401

from cellkit.config.reading import load_config
from cellkit.errors import UserError
from cellkit.formats.label_images import write_labels
from cellkit.run.preflight import preflight
from cellkit.run.preflight_data import ERROR

# ---- nothing is wrong ------------------------------------------------------------------------------------------------


def test_of_a_good_set_there_is_nothing_to_say_and_nothing_is_written(here):
    lab()
    before = sorted(path for path in here.rglob("*"))
    outlook = look(convert__seed=2)  # which deals each line into all splits
    assert outlook.findings == []
    assert sum(sum(kinds.values()) for kinds in outlook.counts().values()) == 8
    assert set(outlook.counts()) == {"train", "val", "test"}
    assert "would run: 8 images (train HEK" in outlook.plan() and "of 's' (microscope)" in outlook.plan()
    assert sorted(path for path in here.rglob("*")) == before


def test_no_pixel_of_a_picture_is_read(here, monkeypatch):
    lab()
    read = tifffile.TiffPageSeries.asarray

    def labels_only(series, *args, **kwargs):
        return pytest.fail("pixels were read") if len(series.shape) > 2 else read(series, *args, **kwargs)

    monkeypatch.setattr(tifffile.TiffPageSeries, "asarray", labels_only)
    assert look(convert__seed=2).findings == []


def test_the_demo_is_good_before_it_is_drawn():
    assert preflight(load_config(Path(__file__).parents[2] / "configs/demo.yaml")) == []


def test_what_is_drawn_is_looked_at_as_if_it_were_there(here):
    Path("c.yaml").write_text("classes: [HEK, N2a]\nconvert: {channels: {nuclei: DAPY}}\n")
    assert "'DAPY' is no channel (did you mean 'DAPI'?)" in refused()
    Path("c.yaml").write_text("classes: [HEK, Hela]\nconvert: {channels: {nuclei: DAPI}}\n")
    assert "no cell line 'Hela'" in refused()
    Path("c.yaml").write_text("classes: [HEK]\nconvert: {channels: {nuclei: DAPI}, drawn: {mixed_images: 1}}\n")
    assert "name a second line, or set mixed_images to 0" in refused()
    drawn = "drawn: {size_px: 96, images_per_line: 6, mixed_images: 0, defect_images_per_line: 0}"
    Path("c.yaml").write_text(f"classes: [HEK, N2a]\nconvert: {{channels: {{nuclei: DAPI}}, scale: 0.5, {drawn}}}\n")
    labels(Path("own/HEK_HEK_01.tif"), 48)
    labels(Path("own/HEK_HEK_02.tif"), 96)
    told = warned(label__use="own")
    assert "HEK_HEK_02.tif is (96, 96), images/HEK_HEK_02.png is (48, 48) px" in told and "HEK_HEK_01" not in told


# ---- data --------------------------------------------------------------------------------------------------------------


def drop(path: str) -> None:
    for file in sorted(Path("s").glob(path)):
        if file.is_file():
            file.unlink()


def rename(old: str, new: str) -> None:
    Path(new).parent.mkdir(parents=True, exist_ok=True)
    os.replace(old, new)


ERRORS = {  # what is done to a good set, settings, and what is said
    "no folder": (lambda: rename("s", "t"), {}, "data is 's', no such folder"),
    "no truth": (lambda: rename("s/truth", "t"), {}, "label.use is truth, but the images came without labels"),
    "labels of other names": (
        lambda: [rename(str(p), str(p.with_name(f"x{p.name}"))) for p in sorted(Path("s/truth").rglob("*.tif"))],
        {},
        "of 8 label files, e.g. truth/HEK/xHEK0.tif, none is named after an image",
    ),
    "channel": (lambda: None, {"convert__channels__nuclei": "DAPY"}, "'DAPY' is no channel"),
    "no channel named": (
        lambda: None,
        {"convert__channels": {"nuclei": None, "cytoplasm": None}},
        "names neither nuclei nor cytoplasm",
    ),
    "plane": (lambda: None, {"convert__projection": 3}, "plane 3 is wanted of HEK0.ome.tif, which has 1"),
    "one image": (lambda: drop("**/*[1-9].*") or drop("**/N2a*"), {}, "no training image is of the class N2a"),
    "class without images": (lambda: drop("**/N2a*"), {}, "no training image is of the class N2a"),
    "folder and class": (lambda: None, {"classes": ["HEK", "NIH3T3"]}, "no training image is of the class NIH3T3"),
    "no class of the labels": (
        lambda: [rename(str(p), f"s/{p.name}") for p in sorted(Path("s").glob("*/*.ome.tif"))]
        and [rename(str(p), f"s/truth/{p.name}") for p in sorted(Path("s/truth").glob("*/*.tif"))],
        {"coco__class_from": "truth"},
        "no training image has a labelled cell of HEK, N2a",
    ),
    "group": (lambda: None, {"convert__split_by": "group"}, "convert.split_by is group, and no image has a group"),
    "group rule": (lambda: None, {"convert__group_from": "(?P<group>plate)"}, "fits 0 of 8 images"),
    "a file per channel": (
        lambda: [rename(str(p), f"{str(p)[:-8]}_{c}.tif") for p, c in
                 zip(sorted(Path("s/HEK").iterdir()), ("1_C1", "1_C2", "2_C1", "2_C2"), strict=True)] and
                [rename(f"s/HEK/HEK{k}_{n}_{c}.tif", f"s/HEK/a_{n}_{c}.tif")
                 for k, n, c in ((0, 1, "C1"), (1, 1, "C2"), (2, 2, "C1"), (3, 2, "C2"))],
        {},
        "seem to be the channels of one image",
    ),
    "table of classes": (
        lambda: Path("s/truth/classes.csv").write_text("file,label,class\nHEK/HEK0.tif,1,Vero\nN2a/N2a0.tif,x,N2a\n"),
        {},
        "classes.csv line 2: the source's label 'Vero' is none of the classes",
    ),
    "its second fault": (
        lambda: Path("s/truth/classes.csv").write_text("file,label,class\nHEK/HEK0.tif,1,Vero\nN2a/N2a0.tif,x,N2a\n"),
        {},
        "classes.csv line 3: could not convert",
    ),
    "twice": (lambda: stack(Path("s/HEK/HEK0.tif")), {}, "would both be image 'HEK_HEK0'"),
    "leaves the data": (lambda: None, {"convert__path": ".."}, "leads out of"),
    "reported and choosing": (
        lambda: None,
        {"evaluate__report_split": "val"},
        "evaluate.report_split is val, whose images also choose",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", ERRORS)
def test_an_error_of_the_data_is_one_that_notebook_01_refuses_or_a_later_one(here, fault):
    change, settings, told = ERRORS[fault]
    lab()
    change()
    outlook = look(**settings)
    assert told in texts(outlook, ERROR), outlook.findings
    assert all(one.remedy for one in outlook.errors())
    if fault not in ("no truth", "no class of the labels", "leaves the data"):  # which are refused further on
        with pytest.raises(UserError):
            converted(**settings)


WARNINGS = {
    "labels of another size": (
        lambda: [labels(Path(f"s/truth/HEK/HEK{k}.tif"), 40) for k in (0, 2)],
        "2 of 8 images could not be used: HEK/HEK0.ome.tif, HEK/HEK2.ome.tif: it is 32 x 32 px, its "
        "label image s/truth/HEK/*.tif is 40 x 40 -> label the image itself",
    ),
    "a channel in some": (lambda: stack(Path("s/N2a/N2a4.ome.tif"), names=("GFP",)) or labels(Path("s/truth/N2a/N2a4.tif")),
                          "1 of 9 images could not be used: N2a/N2a4.ome.tif: 'DAPI' is no channel"),
    "damaged": (lambda: Path("s/HEK/HEK9.tif").write_bytes(b"II*\0nothing") and labels(Path("s/truth/HEK/HEK9.tif")),
                "HEK9.tif: it cannot be read as TIFF"),
    "empty": (lambda: Path("s/HEK/HEK9.tif").touch() or labels(Path("s/truth/HEK/HEK9.tif")), "is empty (0 bytes)"),
    "labels without a picture": (lambda: labels(Path("s/truth/HEK/HEK7.tif")),
                                 "1 left over (file, folder or row of a table that fits no image): truth/HEK/HEK7.tif"),
    "a picture without labels": (lambda: stack(Path("s/HEK/HEK8.ome.tif")), "HEK/HEK8.ome.tif: has no truth, while other"),
    "colour labels": (lambda: tifffile.imwrite("s/truth/HEK/HEK0.tif", np.zeros((SIZE, SIZE, 3), np.uint8), photometric="rgb"),
                      "1 of 8 images could not be used: HEK/HEK0.ome.tif: s/truth/HEK/HEK0.tif holds (32, 32, 3)"),
    "a mask": (lambda: [mask(Path("s/truth/HEK/HEK0.tif")), mask(Path("s/truth/N2a/N2a1.tif"), 1, 3)],
               "N2a1.tif holds one id in 3 pieces: where cells are, not which pixel is whose -> set convert.pieces: split"),
    "labels of fractions": (lambda: tifffile.imwrite("s/truth/HEK/HEK0.tif", np.full((SIZE, SIZE), 0.5, np.float32)),
                            "(32, 32) float32 with values such as 0.5: no ids -> a label image is (H, W) integers"),
    "labels torn off": (lambda: Path("s/truth/HEK/HEK0.tif").write_bytes(Path("s/truth/HEK/HEK0.tif").read_bytes()[:-9]),
                        "s/truth/HEK/HEK0.tif"),
    "nothing annotated": (lambda: tifffile.imwrite("s/truth/HEK/HEK0.tif", np.full((SIZE, SIZE), -1, np.int16)),
                      "HEK/HEK0.ome.tif: has no truth, while other"),
    "a folder that is no class": (lambda: stack(Path("s/day 1/a.ome.tif")) or labels(Path("s/truth/day 1/a.tif")),
                                  "is called after none of the classes (HEK, N2a)"),
    "a format that is not read": (lambda: Path("s/HEK/a.oib").write_bytes(b"x"), "HEK/a.oib: it is Olympus OIB"),
    "a row for no cell": (lambda: Path("s/truth/classes.csv").write_text("file,label,class\nHEK/HEK0.tif,99,HEK\n"),
                          "line 2 of the table of classes names label 99, and HEK0.tif has 2 labels, 1 to 2"),
    "a row for no image": (lambda: Path("s/truth/classes.csv").write_text("file,label,class\nHEK/HEK77.tif,1,HEK\n"),
                           "line 2 names 'HEK/HEK77.tif', which is no image"),
}  # fmt: skip


@pytest.mark.parametrize("fault", WARNINGS)
def test_a_bad_file_among_good_ones_is_named_and_the_run_goes_on(here, fault, capsys):
    change, told = WARNINGS[fault]
    lab()
    change()
    assert told in warned()
    assert converted().images.records, "the stage agrees"


def test_a_picture_without_labels_is_run_where_they_are_proposed(here):
    lab()
    stack(Path("s/HEK/HEK8.ome.tif"), seed=8)
    told = warned(label__use="proposed")
    assert "has no truth" not in told and "the labels that 8 images came with are not used" in told
    assert "or the folder of your labels, which leaves proposals to images that it has none for" in told
    assert len(look(label__use="proposed").records) == 9 == len(converted(label__use="proposed").images)
    outlook = look(label__use="s/truth")
    assert len(outlook.records) == 9 and "came with are not used" not in texts(outlook, "warning")
    assert "s/truth: 8 labelled by a person (" in outlook.plan() and len(look().records) == 8


def test_labels_without_a_cell_or_with_too_few_to_train_on_are_told(here):
    lab()
    for path in Path("s/truth/N2a").iterdir():
        write_labels(path, np.zeros((SIZE, SIZE), np.uint16))
    assert "no training image has a labelled cell of N2a" in refused()
    lab()
    assert "min_train_masks is 3, and no training image has more than 2 labelled cells" in refused(
        finetune__min_train_masks=3
    )
    assert refused(finetune__min_train_masks=2) == ""
    told = refused(finetune__min_area_px=65, maskrcnn__min_area_px=500)
    assert "maskrcnn.min_area_px is 500, and the largest of" in told and "finetune.min_area_px" not in told
    assert "finetune.min_area_px = 65 px: " in warned(finetune__min_area_px=65)
