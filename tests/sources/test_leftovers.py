"""What lies in a data folder and fits no image is named."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from cellkit.cells.instances import Instances
from cellkit.config.sections import ChannelsConfig, Config, ConvertConfig
from cellkit.errors import UserError
from cellkit.formats.seg import write_seg
from cellkit.sources.ingest import convert_images

LABELS = np.zeros((24, 32), np.uint16)
LABELS[2:9, 3:12], LABELS[12:20, 10:30] = 1, 2


def write(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        labels = "mask" in name.lower() or "truth" in name or "label" in name.lower()
        if path.suffix.lower() in (".tif", ".tiff"):
            tifffile.imwrite(path, LABELS if labels else LABELS * 900 + 7, metadata=None)
        elif path.suffix == ".png":
            Image.fromarray(LABELS.astype(np.uint8) * (1 if labels else 100)).save(path)
        else:
            path.write_bytes(b"no picture")
    return root


def gathered(root, source="folder", classes=("HEK",), **options):
    cfg = ConvertConfig(source=source, classes=classes, channels=ChannelsConfig(nuclei=0), **options)
    made = convert_images(cfg, root, root.parent / "run")
    return made, {one.item: one.reason for one in made.quarantined}


def test_an_ome_zarr_by_another_name_is_named(tmp_path):
    root = write(tmp_path / "in", "a.tif", "a_masks.tif", "b.ngff/0/0.0", "b.ngff/.zattrs")
    _, aside = gathered(root)
    assert list(aside) == ["b.ngff"] and "rename the folder to b.ngff.zarr" in aside["b.ngff"]


def test_pairs_by_any_spelling_and_what_is_alone_is_named(tmp_path, capsys):  # also: masks listed beside images
    root = write(tmp_path / "in", "a.tiff", "a_mask.tiff", "b.tif", "b_masks.png", "c.tif", "c_masks.tif", "c_flows.tif",
                 "d_masks.tif", "Img2.tif", "img2_Masks.TIF", "e.tif")  # fmt: skip
    made, aside = gathered(root)
    assert [record.image_id for record in made.images.records] == ["Img2", "a", "b", "c"]
    assert all(len(cells) == 2 for cells in made.images.instances)
    assert set(aside) == {"d_masks.tif", "e.tif"} and "no image is called so" in aside["d_masks.tif"]
    assert "for e.tif labels are looked for as" in aside["d_masks.tif"] and "has no truth" in aside["e.tif"]
    assert "1 pictures of outlines and flows" in capsys.readouterr().err


def test_pictures_that_are_not_read_are_named_and_what_systems_leave_is_not(tmp_path, capsys):
    silent = ("HEK/.ipynb_checkpoints/a-checkpoint.tif", "HEK/._a.tif", "Thumbs.db", "HEK/@eaDir/a.tif", "notes.txt")
    named = ("HEK/b.bmp", "HEK/c.webp", "e.tif.gz", "N2a/f.svs", "HEK/a.ome.tf2")
    root = write(tmp_path / "in", "HEK/a.tif", "HEK/z.tif", *silent, *named, "table.parquet")
    (root / "HEK" / "noend").write_bytes((root / "HEK" / "a.tif").read_bytes())
    made, aside = gathered(root, "microscope")
    assert [record.image_id for record in made.images.records] == ["HEK_a", "HEK_z"]
    assert set(aside) == {*named, "HEK/noend"} and "unpack it" in aside["e.tif.gz"] and "BMP" in aside["HEK/b.bmp"]
    said = capsys.readouterr().err
    assert "1 *.parquet" in said and not any(name.split("/")[-1] in said for name in silent)


def test_labels_of_which_none_fits_are_refused_with_an_example(tmp_path):
    root = write(tmp_path / "in", "HEK/H0.ome.tif", "HEK/H1.tif", "truth/labels.tif", "truth/x.roi")
    with pytest.raises(
        UserError, match="of 2 label files.* none is named after an image\nfor HEK/H0.ome.tif .* truth/HEK/H0.tif"
    ):
        gathered(root, "microscope")


def test_a_set_that_is_too_small_for_want_of_labels_says_which(tmp_path, capsys):
    root = write(tmp_path / "in", "a.tif", "a_masks.tif", "b.tif", "bb_masks.tif")
    cfg = ConvertConfig(source="folder", classes=("HEK",), channels=ChannelsConfig(nuclei=0))
    convert_images(cfg, root, tmp_path / "run", Config(classes=("HEK",), convert=cfg))
    said = capsys.readouterr().err
    assert "no validation image: training images judge the adaptation" in said
    assert "b.tif: has no truth" in said and "bb_masks.tif: is a label image" in said


def test_a_set_that_is_too_small_for_a_damaged_file_says_what_is_wrong_with_it(tmp_path, capsys):
    root = write(tmp_path / "in", "test/a.tif", "test/a_masks.tif", "b_masks.tif")
    (root / "b.tif").write_bytes(b"II*\0damaged")
    cfg = ConvertConfig(source="folder", classes=("HEK",), channels=ChannelsConfig(nuclei=0))
    with pytest.raises(UserError, match="no training image"):
        convert_images(cfg, root, tmp_path / "run", Config(classes=("HEK",), convert=cfg))
    assert "b.tif: it cannot be read as TIFF" in capsys.readouterr().err


def test_labels_of_other_tools_beside_an_image_are_named(tmp_path):
    root = write(
        tmp_path / "in", *(f"{name}.tif" for name in "abcdefg"), "a_rois.zip", "b.roi", "all.zip", "classes.csv.xlsx"
    )
    made, aside = gathered(root)
    assert len(made.images.records) == 7 and set(aside) == {"a_rois.zip", "b.roi", "classes.csv.xlsx"}


@pytest.mark.parametrize(
    ("name", "remedy"), [("{}.zip", "ImageJ"), ("{}_rois.zip", "ImageJ"), ("{}.npy", "a label image")]
)
def test_labels_called_after_their_images_in_a_form_that_is_not_read_are_called_so(tmp_path, name, remedy):
    root = write(tmp_path / "all", *(f"{k}.tif" for k in "abc"), *(name.format(k) for k in "abc"))
    with pytest.raises(UserError, match=f"holds labels in a form that this source does not read(.|\n)*{remedy}"):
        gathered(root)
    some = write(tmp_path / "some", *(f"{k}.tif" for k in "abc"), "truth/a.tif", name.format("a"), name.format("b"))
    aside = gathered(some)[1]
    assert aside[name.format("a")] == "holds labels, and those of a are read from another file; keep one of the two"
    assert "in a form that this source does not read" in aside[name.format("b")]


def test_a_seg_file_is_read_where_labels_lie(tmp_path):
    root = write(tmp_path / "in", "HEK/a.tif")
    (root / "truth" / "HEK").mkdir(parents=True)
    write_seg(root / "truth" / "HEK" / "a_seg.npy", None, Instances.from_labels(LABELS), ("HEK",))
    made, aside = gathered(root, "microscope")
    assert not aside and [len(one) for one in made.images.instances] == [2]


def test_folders_and_classes_that_do_not_fit_are_named(tmp_path, capsys):
    root = write(tmp_path / "in", "HEK/a.tif", "N2a/b.tif", "N2a/c.tif")
    _, aside = gathered(root, "microscope", ("HEK", "NIH3T3"))
    assert "the class of its 2 images is unknown; no image is in a folder called after NIH3T3" in aside["N2a/"]
    _, aside = gathered(
        write(tmp_path / "two" / "in", "HEK/a.tif", "N2a/b.tif", "day/c.tif"), "microscope", ("HEK", "N2a")
    )
    assert not aside and "day/ is called after none of the classes" in capsys.readouterr().err
    _, aside = gathered(write(tmp_path / "three" / "in", "HEK/a.tif", "HEK/b.tif"), "microscope", ("HEK", "N2a"))
    assert not aside and "class N2a has no folder" in capsys.readouterr().err


def test_pictures_elsewhere_get_a_word(tmp_path, capsys):
    names = (f"u2os/{folder}/{k}.png" for folder in ("images", "labels") for k in range(3))
    root = write(tmp_path / "in", *names, "u2os/labels/9.png", "previews/1.png")
    made, aside = gathered(root, "two_lines", ("u2os",))
    assert len(made.images.records) == 3 and set(aside) == {"u2os/labels/9.png"}
    assert "not used, as no part of this layout: 1 picture below previews" in capsys.readouterr().err


def test_labels_in_text_files_of_other_layouts_are_named(tmp_path):
    root = write(tmp_path / "in", *(f"images/train/{name}.png" for name in "abcde"))
    texts = {
        "labels/train/a.txt": "0 0.1 0.1 0.3 0.1 0.3 0.3\n",
        "images/train/b.xml": "<annotation><object><bndbox/></object></annotation>",
        "images/train/c.json": '{"shapes": [], "imagePath": "c.png"}',
        "all.json": '{"images": [], "annotations": []}',
        "images/train/d.txt": "exposure 3 ms\n",
        "images/train/e.xml": "<OME/>",
        "labels/notes.txt": "0 0.1 0.1 0.3 0.1\n",
    }
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    _, aside = gathered(root)
    assert {name: told.split("; ")[1] for name, told in aside.items()} == {
        "labels/train/a.txt": "export them as COCO, with outlines", "images/train/b.xml": "set convert.source: voc",
        "images/train/c.json": "set convert.source: labelme", "all.json": "set convert.source: coco",
    }  # fmt: skip


def test_a_link_to_a_folder_is_named_unless_it_leads_back(tmp_path):
    root = write(tmp_path / "in", "HEK/a.tif", "HEK/a_masks.tif")
    other = write(tmp_path / "other", "b.tif")
    (root / "HEK" / "more").symlink_to(other)
    (root / "HEK" / "back").symlink_to(root)
    assert gathered(root)[1] == {"HEK/more": "is a link to a folder, and is not followed; put the folder itself there"}


def test_text_called_as_labels_of_an_image_is_named(tmp_path):
    root = write(
        tmp_path / "in", "a.tif", "a_masks.tif", "b.tif", "b_annotations.xml", "b-labels.csv", "b.xml", "c_gt.txt"
    )
    aside = gathered(root)[1]
    assert set(aside) == {"b.tif", "b_annotations.xml", "b-labels.csv"} and "not read" in aside["b-labels.csv"]
