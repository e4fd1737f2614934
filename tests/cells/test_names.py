"""What names say: spellings, splits, series, channels."""

import unicodedata

import pytest

from cellkit.cells.names import (
    best_pairs,
    channel_of,
    is_no_data,
    plain,
    series_of,
    split_of_file,
    split_of_folder,
    split_of_folders,
    stem_of,
)
from cellkit.cells.records import ImageRecord


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (unicodedata.normalize("NFD", "Müller/ä.TIF"), "müller/Ä.tif"),
        ("mixed\\a.tif", "./mixed/a.tif"),
        ("N2a /b.tif ", "N2a/b.tif"),
        ("µm", "μm"),  # micro sign and Greek mu
    ],
)
def test_spellings_of_one_name_are_one(one, other):
    assert plain(one) == plain(other) != plain("c.tif")


def test_what_systems_leave_behind_is_no_data():
    for name in (".ipynb_checkpoints", "._a.tif", "Thumbs.db", "@eaDir", ".DS_Store", "__MACOSX", "desktop.ini"):
        assert is_no_data(name)
    assert not any(map(is_no_data, ("a.tif", "thumbs.tif", "eaDir")))


@pytest.mark.parametrize(
    ("names", "split"),
    [
        (("train", "Training", "TRAIN2017", "train_images", "trainset", "TrainImages", "01_train"), "train"),
        (("val", "valid", "Validation", "val2017", "valid set", "dev", "Tuning", "tune_set"), "val"),
        (
            (
                "test",
                "Testing",
                "test_set",
                "holdout",
                "hold-out",
                "held_out",
                "Test 1",
                "eval",
                "Evaluation",
                "test_final",
                "public_test",
                "private test",
                "unseen",
            ),
            "test",
        ),
        (
            (
                "train_val",
                "trainval",
                "test plate",
                "latest",
                "evaluation of dyes",
                "values",
                "HEK",
                "final",
                "public",
                "",
            ),
            "",
        ),
    ],
)
def test_folders_are_called_after_a_split_as_a_whole(names, split):
    assert {split_of_folder(name) for name in names} == {split}


def test_the_innermost_folder_and_any_word_of_a_file_tell_the_split():
    assert split_of_folders(["train", "x", "valid"]) == "val" and split_of_folders(["x", "images"]) == ""
    assert split_of_file("instances_Train2017") == "train" and split_of_file("cells_holdout") == "test"
    assert split_of_file("train_and_val") == split_of_file("_annotations.coco") == ""


@pytest.mark.parametrize(
    ("stems", "shared"),
    [
        (("movie_t001", "movie_T2", "movie-time3", "movie_frame0004", "movie t 5"), "movie"),
        (("a_z00", "a_Z1", "a_slice2", "a-plane3"), "a"),
        (("p1_B02_s1", "p1_B02_site2", "p1_B02_f03", "p1_B02_xy4", "p1_B02_s1_z3_t2"), "p1_B02"),
        (("r01c02f01p01-ch1sk1fk1fl1", "r01c02f03p02-ch2sk1fk1fl1"), "r01c02"),
        (("SHSY5Y_Phase_A10_1_00d04h00m_2", "SHSY5Y_Phase_A10_2_01d00h00m_1", "SHSY5Y_Phase_A10_1_2024y03m01d_12h30m"),
         "SHSY5Y_Phase_A10"),
        (("stacks-03212011_a01_s1", "stacks-03212011_a01_s2", "stacks-03212011_a01_z3_s2"), "stacks-03212011_a01"),
        (("P_A02_s1_w1051DAA7C-7042-435F-99F0-1E847D9B42CB", "P_A02_s3_w1E89C0FFE-7042-435f-99f0-1e847d9b42cb"), "P_A02_w1"),
        (("Plate_A01_T0001F001L01A01Z01C01", "Plate_A01_T0002F004L01A02Z03C02"), "Plate_A01"),
        (("P_A01f00d0", "P_A01f12d0"), "P_A01_d0"),
        (("exp_xy01t001c1", "exp_xy01t013z2c1"), "exp_xy01_c1"),
        (("exp1_s1t02", "exp1_s1t03z11", "exp1_s1_t4"), "exp1_s1"),
        (("slide1_tile_01", "slide1-tile2", "slide1_patch_1_2", "slide1_x0_y512", "slide1_x512y0", "slide1_y=0_x=512",
          "slide1 [x=0,y=512,w=512,h=512]", "slide1 [d=2,x=0,y=0,w=9,h=9]", "slide1_x0-99_y0-99", "slide1_fov3"), "slide1"),
        (("donor1frame003", "donor1_frame4", "donor1t005", "donor1_pos2"), "donor1"),
        (("mito_00d04h00m", "mito_01d00h00m", "mitoframe3"), "mito"),
        (("x0_y512", "t001", "z2"), ""),
        (("cells_s1", "dna-4", "cell_12", "zebra1", "t_cells"), None),
        (("HEK_01", "mixed_03", "dna-16", "train_0012", "val_0189", "nih3t3_01", "nih3t301", "C2C12_s1", "C2C12-3", "B16F10_2",
          "b16_f10_s1", "p1_3", "A01_3", "exp_a01_2", "movie_A-0001", "slide1", "tile_01", "img_crop_3", "train_patch_12",
          "x20_cells", "HeLa_24h_1", "051DAA7C-7042-435F-99F0-1E847D9B42CB", "2024-03-01_12", "HeLa_3d_24h_1"), None),
    ],
)  # fmt: skip
def test_frames_of_one_series_share_a_name(stems, shared):
    assert {series_of(stem) for stem in stems} == {shared}


@pytest.mark.parametrize(
    "pair",
    ["a_C1-DAPI a_C2-GFP", "a_w1 a_w2", "a_w1DAPI a_w2GFP", "a_ch00 a_ch01", "a-C=0 a-C=1", "C1-a C2-a", "a_DAPI a_GFP",
     "A01_s1_w1 A01_s1_w2", "r01c01f01p01-ch1sk1fk1fl1 r01c01f01p01-ch2sk1fk1fl1", "a_channel_0 a_channel_1",
     "P_A01_T0001F001L01A01Z01C01 P_A01_T0001F001L01A02Z01C02"],
)  # fmt: skip
def test_channels_of_one_image_share_a_name(pair):
    (one, first), (other, second) = (channel_of(stem) for stem in pair.split())
    assert one == other and first != second


@pytest.mark.parametrize(
    ("mine", "other", "paired"),
    [
        ("HEK/a HEK/b", "HEK/a N2a/b", {0: 0}),
        ("HEK/a HEK/b N2a/c", "HEK/a c N2a/b", {0: 0, 2: 1}),
        ("a Set1_GT/b Set2_GT/c", "a Set1/b Set2/c", {0: 0, 1: 1, 2: 2}),
        ("a train_labels/b", "a train_images/b", {0: 0, 1: 1}),
        ("manual/a manual/b", "auto/b auto/a", {0: 1, 1: 0}),
        ("x/1 x/2 y/1", "x/1 y/2 z/1", {0: 0}),
        ("a b/c", "a c", {0: 0, 1: 1}),
    ],
)
def test_a_looser_agreement_adds_what_no_folder_contradicts(mine, other, paired):
    sides = [[ImageRecord(path, path, 1, 1) for path in paths.split()] for paths in (mine, other)]
    by_path, by_stem = (lambda one: frozenset([one.path])), (lambda one: frozenset([stem_of(one.path)]))
    assert best_pairs(*sides, [by_path, by_stem]) == paired
