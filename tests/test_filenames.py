"""What names say: spellings, splits, series, channels."""

import unicodedata

import pytest

from cellkit.filenames import channel_of, is_no_data, plain, series_of, split_of_file, split_of_folder, split_of_folders


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
        (("cells_s1", "dna-4", "cell_12", "zebra1", "t_cells"), None),
    ],
)
def test_frames_of_one_series_share_a_name(stems, shared):
    assert {series_of(stem) for stem in stems} == {shared}


@pytest.mark.parametrize(
    "pair",
    ["a_C1-DAPI a_C2-GFP", "a_w1 a_w2", "a_w1DAPI a_w2GFP", "a_ch00 a_ch01", "a-C=0 a-C=1", "C1-a C2-a", "a_DAPI a_GFP",
     "A01_s1_w1 A01_s1_w2", "r01c01f01p01-ch1sk1fk1fl1 r01c01f01p01-ch2sk1fk1fl1", "a_channel_0 a_channel_1"],
)  # fmt: skip
def test_channels_of_one_image_share_a_name(pair):
    (one, first), (other, second) = (channel_of(stem) for stem in pair.split())
    assert one == other and first != second
