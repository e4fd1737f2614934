"""From planes to a picture: which channel, how much light, what size; and the ids of images."""

from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from conftest import convert_file
from convert_cases import NUCLEI, names, write
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from cellkit.cells.instances import Instances
from cellkit.cells.names import check_ids, image_id_of
from cellkit.cells.resize import resize_image, resize_instances, resized_shape
from cellkit.errors import UserError
from cellkit.microscope.channels import colour_map, find_channel
from cellkit.microscope.convert import Conversion, best_focus
from cellkit.microscope.file_info import Channel
from cellkit.microscope.light import percentiles_of, to_8bit

ACTIN = NUCLEI[::-1, ::-1].copy()


# ---- channels ------------------------------------------------------------------------------------------------------


def test_nuclei_are_blue_and_cytoplasm_green_in_whatever_order_they_lie(tmp_path):
    first = write(tmp_path / "a.ome.tif", np.stack([NUCLEI, ACTIN]), "CYX", ["DAPI", "actin"])
    second = write(tmp_path / "b.ome.tif", np.stack([ACTIN, NUCLEI]), "CYX", ["actin", "DAPI"])
    (a,), (b,) = (convert_file(path, Conversion({"nuclei": "dapi", "cytoplasm": "Actin"})) for path in (first, second))
    np.testing.assert_array_equal(a.image, b.image, strict=True)
    assert a.image.shape == (20, 30, 3) and a.image.dtype == np.uint8
    assert not a.image[..., 0].any() and a.image[0, 0, 2] == 0 == a.image[-1, -1, 1] and a.image[-1, -1, 2] == 255
    assert a.channels == b.channels == "red=;green=actin;blue=DAPI"
    (c,) = convert_file(second, Conversion(SimpleNamespace(nuclei=1, cytoplasm=0)))
    np.testing.assert_array_equal(c.image, a.image)


def test_any_channel_can_go_to_any_colour(tmp_path):
    path = write(tmp_path / "a.ome.tif", np.stack([NUCLEI, ACTIN]), "CYX")
    (one,) = convert_file(path, Conversion({"red": 1, "nuclei": 0}))
    assert one.image[..., 0].any() and not one.image[..., 1].any() and one.image[..., 2].any()
    assert one.channels == "red=channel 1;green=;blue=channel 0"
    with pytest.raises(UserError, match="two channels are wanted in blue"):
        colour_map({"nuclei": 0, "blue": 1})
    with pytest.raises(UserError, match="did you mean 'nuclei'"):
        colour_map({"nucelei": 0})


def test_no_channel_is_ever_guessed(tmp_path):
    Image.fromarray((NUCLEI // 300).astype(np.uint8)).save(tmp_path / "grey.png")
    with pytest.raises(UserError, match=r"grey.png has 1 channel \(0 grey\).*\n.*nuclei: 0"):
        convert_file(tmp_path / "grey.png", Conversion({"nuclei": None, "cytoplasm": None}))
    (one,) = convert_file(tmp_path / "grey.png", Conversion({"nuclei": 0, "cytoplasm": None}))
    assert one.image[..., 2].any() and not one.image[..., :2].any()
    with pytest.raises(UserError, match=r"'DAPI' is no channel of grey.png.*0 grey"):
        convert_file(tmp_path / "grey.png", Conversion({"nuclei": "DAPI"}))


def test_a_channel_is_named_by_name_index_or_wavelength():
    file = (Channel("TRITC", 580.0), Channel("DAPI", 461.0), Channel("", 520.0), Channel("488", 700.0))
    wanted = {"dapi": 1, 0: 0, "2": 2, 460: 1, "525 nm": 2, "575nm": 0, "488": 3, 3: 3}
    assert {spec: find_channel(spec, file) for spec in wanted} == wanted
    for spec, said in (
        (4, "4 channels"),
        (300, "is no channel"),
        ("DABI", "did you mean 'DAPI'"),
        (True, "is no channel"),
    ):
        with pytest.raises(UserError, match=said):
            find_channel(spec, file)
    twice = (Channel("GFP", 510.0), Channel("GFP", 510.0))
    for spec in ("GFP", 510):
        with pytest.raises(UserError, match="fits 2 channels"):
            find_channel(spec, twice)


# ---- planes --------------------------------------------------------------------------------------------------------


def test_z_is_projected_as_asked_and_said(tmp_path):
    stack = np.stack([NUCLEI // 2, NUCLEI, ACTIN])
    path = write(tmp_path / "a.ome.tif", stack, "ZYX")
    expected = {"max": stack.max(0), "mean": stack.mean(0), 0: stack[0], 2: stack[2]}
    for projection, plane in expected.items():
        (one,) = convert_file(path, Conversion({"nuclei": 0}, projection, (0, 100)))
        low, high = plane.min(), plane.max()
        np.testing.assert_array_equal(one.image[..., 2], np.rint((plane - low) / (high - low) * 255))
        assert one.levels[0].low == low and one.levels[0].high == high
        assert one.source == f"a.ome.tif z {projection}" + ("" if isinstance(projection, int) else " of 3")
    for wrong in (3, -1, "median"):
        with pytest.raises(UserError, match="planes count from 0|choose max, mean, focus"):
            convert_file(path, Conversion({"nuclei": 0}, wrong))


def test_focus_takes_the_sharp_plane_for_all_channels_at_once(tmp_path):
    from scipy.ndimage import gaussian_filter

    sharp = np.random.default_rng(0).random((2, 40, 40)) * 4000
    stack = np.stack([gaussian_filter(sharp, (0, s, s)) for s in (3, 1, 0, 2)]).astype(np.uint16)
    path = write(tmp_path / "a.ome.tif", stack, "ZCYX")
    (one,) = convert_file(path, Conversion({"nuclei": 0, "cytoplasm": 1}, "focus", (0, 100)))
    (two,) = convert_file(path, Conversion({"nuclei": 0, "cytoplasm": 1}, 2, (0, 100)))
    np.testing.assert_array_equal(one.image, two.image)
    assert one.planes == "z 2 (sharpest of 4)"
    assert best_focus([[np.zeros((5, 5))], [np.zeros((5, 5))]]) == 0


def test_every_scene_and_time_becomes_a_picture(tmp_path):
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(np.stack([NUCLEI, ACTIN]), metadata={"axes": "TYX"}, photometric="minisblack")
        writer.write(NUCLEI, metadata={"axes": "YX"}, photometric="minisblack")
    made = convert_file(path, Conversion({"nuclei": 0}))
    assert [one.suffix for one in made] == ["_s0_t0", "_s0_t1", "_s1"]
    assert made[1].source == "a.ome.tif scene 0 t 1"
    np.testing.assert_array_equal(made[0].image, made[2].image)


# ---- light ---------------------------------------------------------------------------------------------------------

integers = st.sampled_from([np.uint8, np.uint16]).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12))
)


@settings(deadline=None)  # OpenCV is loaded on first use
@given(integers, st.floats(0, 49), st.floats(51, 100))
def test_percentiles_are_numpys_and_the_picture_keeps_the_order_of_values(plane, low_q, high_q):
    image, low, high, clipped = to_8bit(plane, (low_q, high_q))
    np.testing.assert_allclose([low, high], np.percentile(plane, [low_q, high_q]), rtol=1e-9, atol=1e-6)
    assert image.shape == plane.shape and image.dtype == np.uint8 and 0 <= clipped <= 1
    order = np.argsort(plane, axis=None, kind="stable")
    assert (np.diff(image.ravel()[order].astype(int)) >= 0).all()
    as_float, *levels, clipped_float = to_8bit(plane.astype(np.float64), (low_q, high_q))
    np.testing.assert_allclose(levels, [low, high], rtol=1e-9, atol=1e-6)
    assert clipped == clipped_float and np.abs(as_float.astype(int) - image).max() <= 1


@pytest.mark.parametrize("pair", [(0.3, 99.8), (0, 100), (1, 50), (40, 60), (0.001, 99.999), (99, 100)])
def test_percentiles_of_whole_pictures_are_numpys_whatever_the_sample_says(pair):
    rng = np.random.default_rng(0)
    row = np.arange(640, dtype=np.uint16)
    planes = {
        "noise": rng.normal(3000, 200, (300, 400)),
        "sparse": np.where(rng.random((300, 400)) < 0.001, rng.integers(0, 65536, (300, 400)), 90),
        "two values": rng.integers(0, 2, (300, 400)) * 65535,
        "stripes": np.broadcast_to(row % 64 * 1000, (512, 640)),  # every sampled pixel lies in a dark column
        "ramp": np.broadcast_to(row, (512, 640)),
        "dark top": np.r_[np.zeros((10, 400)), np.full((290, 400), 7)],
        "one row": rng.integers(0, 9, (1, 5000)),
    }
    for name, plane in planes.items():
        for dtype in (np.uint16, np.uint8):
            plane = np.ascontiguousarray(plane.astype(dtype))
            np.testing.assert_allclose(percentiles_of(plane, pair), np.percentile(plane, pair), rtol=1e-9, err_msg=name)


thousandths = st.floats(-10, 70_000).map(lambda value: round(value, 3))


@settings(deadline=None)
@given(integers, thousandths, thousandths)
def test_given_limits_take_the_place_of_percentiles(plane, low, high):
    image, *told, _ = to_8bit(plane, (0.3, 99.8), limits=(low, high))
    assert told == [low, high]
    values = plane.astype(float)
    expected = np.rint(np.clip((values - low) / (high - low), 0, 1) * 255) if high > low else (values > low) * 255
    np.testing.assert_array_equal(image, expected)


# ---- size ----------------------------------------------------------------------------------------------------------

labels = hnp.arrays(
    np.int32, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=14), elements=st.integers(0, 4)
)


def resize_labels(labels, scale):
    """Resize (H, W) labels pixel by pixel: each new pixel takes the id that its centre lies in."""
    rows, columns = (
        np.minimum(((np.arange(new) + 0.5) * old / new).astype(int), old - 1)
        for old, new in zip(labels.shape, resized_shape(labels.shape, scale), strict=True)
    )
    return labels[np.ix_(rows, columns)]


@given(labels, st.sampled_from([0.1, 0.34, 0.5, 0.77, 1.0, 1.5, 2.0, 3.3]))
def test_resized_instances_are_the_instances_of_the_resized_labels(image, scale):
    small = resize_labels(image, scale)
    assert small.shape == resized_shape(image.shape, scale) and set(np.unique(small)) <= set(np.unique(image))
    found = resize_instances(Instances.from_labels(image), scale)
    assert found == Instances.from_labels(small)


def test_overlaps_classes_and_scores_survive_resizing_and_vanished_objects_go():
    masks = np.zeros((3, 8, 10), bool)
    masks[0, :6, :7], masks[1, 2:, 3:], masks[2, 0, 9] = True, True, True
    both = Instances.from_masks(masks, (8, 10), [1, 2, 1], [0.5, 0.9, 0.1])
    small = resize_instances(both, 0.5)
    assert small.shape == (4, 5) and small.overlapping and small.class_ids.tolist() == [1, 2]
    assert small.scores.tolist() == [0.5, 0.9]
    for k in range(2):
        np.testing.assert_array_equal(small.mask(k), resize_labels(masks[k], 0.5))


def test_images_shrink_by_area_and_labels_follow_on_the_same_grid():
    image = np.zeros((8, 8, 3), np.uint8)
    image[:, 4:] = 200
    small = resize_image(image, 0.25)
    assert small.shape == (2, 2, 3) and small[0, 0, 0] == 0 and small[0, 1, 0] == 200
    checker = np.indices((8, 8)).sum(0) % 2 * 200
    assert np.unique(resize_image(np.repeat(checker[..., None], 3, 2).astype(np.uint8), 0.5)).tolist() == [100]
    assert resize_image(image, 1.0) is image
    np.testing.assert_array_equal(resize_labels(image[..., 0], 0.25), small[..., 0])
    for wrong in (0, -1, 1e9, float("nan")):
        with pytest.raises(UserError, match="scale is"):
            resize_image(image, wrong)


def test_pixel_size_follows_the_scale(tmp_path):
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, NUCLEI, metadata={"axes": "YX", "PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm"})
    (one,) = convert_file(path, Conversion({"nuclei": 0}, scale=0.5))
    assert (one.height_px, one.width_px, one.um_per_px) == (10, 15, 1.0)


# ---- ids -----------------------------------------------------------------------------------------------------------

file_names = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=40
).filter(lambda name: name not in (".", ".."))


@settings(max_examples=300)
@given(st.lists(st.lists(file_names, min_size=1, max_size=3).map("/".join), min_size=1, max_size=8, unique=True))
def test_ids_are_safe_file_names_and_two_paths_never_share_one_unnoticed(paths):
    ids = [image_id_of(f"{path}.tif") for path in paths]
    assert ids == [image_id_of(f"{path}.tif") for path in paths]
    for image_id in ids:
        assert len(image_id.encode()) <= 130 and image_id[0] not in "-.=+@ " and image_id[-1] != "."
        assert not set(image_id) & set('/\\:*?"<>|{}%\n\t ')
    try:
        check_ids(zip(ids, paths, strict=True))
    except UserError:
        assert len({image_id.casefold() for image_id in ids}) < len(ids)
    else:
        assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(
    "name",
    [
        "zell ä.tif",
        "日本.tif",
        "-rf.tif",
        "{}.tif",
        "a{b}.tif",
        "CON.tif",
        "x" * 255,
        "=cmd.tif",
        ".hidden.tif",
        "a%d.tif",
    ],
)
def test_awkward_names_are_accepted_and_written(tmp_path, name):  # fault 24
    image_id = image_id_of(name)
    (tmp_path / f"{image_id}.png").write_bytes(b"")
    assert (tmp_path / f"{image_id}.png").is_file() and image_id_of(name) == image_id


def test_signs_that_give_way_do_not_make_two_names_one():
    awkward = [
        "a{1}.tif",
        "a(1).tif",
        "a[1].tif",
        "-a1.tif",
        "a-1.tif",
        "a<1>.tif",
        "con.tif",
        "x" * 200 + ".tif",
        "x" * 201 + ".tif",
    ]
    assert len({image_id_of(name) for name in awkward}) == len(awkward)


def test_ids_that_collide_name_both_files():  # faults 23 and 25
    with pytest.raises(UserError, match=r"a/1.tif and a_1.tif would both be image 'a_1'"):
        check_ids((image_id_of(name), name) for name in ("a/1.tif", "a_1.tif"))
    with pytest.raises(UserError, match=r"a.tif and A.tif differ in upper and lower case only"):
        check_ids((image_id_of(name), name) for name in ("a.tif", "A.tif"))
    check_ids((image_id_of(name), name) for name in ("a/1.tif", "b/1.tif"))


# ---- a number as name, index or wavelength -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "channels", "index"),
    [
        (514, names(("488", 520.0), ("514", 545.0)), 1),
        (405, names("405", "488"), 0),
        (1, names("1", "2"), 0),
        ("dapi", names("DAPI", "dapi"), 1),
        ("DAPI", names("GFP", " DAPI "), 1),
        ("488 nm", names("DAPI", "488nm"), 1),
        (488, names("DAPI", "488 nm"), 1),
        ("01", names("01", "1"), 0),
        ("channel 1", names("1", "2"), 1),
        (0, names("0", "0,1"), 0),
        (1, names("DAPI", "1.0"), 1),
        (488, names(("GFP", 525.0, 470.0), ("other", 488.0)), 1),
        (3, names("DAPI", "FITC", "Cy3", "Cy5"), 3),
        (2, names("Sox2", "CD3", "DAPI"), 2),
        ("channel 2", names("Ch1", "Ch2", "Ch3"), 2),
        ("Ch2", names("Ch1", "Ch2", "Ch3"), 1),
        (1, names("C0", "C1", "C2"), 1),
        (488, names(("Alexa 488", 500.0), "Alexa 514"), 0),
    ],
)
def test_a_number_and_its_text_find_the_same_channel_and_exact_names_come_first(spec, channels, index):
    assert find_channel(spec, channels) == find_channel(str(spec), channels) == index


@pytest.mark.parametrize(
    ("spec", "channels", "shown"),
    [
        (1, names("01", "02"), "fits 2 channels (0 as name, 1 as index)"),
        (1, names("1.0", "x"), "(0 as name, 1 as index)"),
        ("Dapi", names("DAPI", "dapi"), "(0 as name, 1 as name)"),
        ("DAPI", names("DAPI", "DAPI"), "(0 as name, 1 as name)"),
        (488, names("488nm", ("GFP", 488.0)), "(0 as name, 1 as wavelength)"),
        (250, tuple(Channel("", 600.0 - k) for k in range(400)), "(250 as index, 350 as wavelength)"),
        (561, names(("a", 642.0, 561.0), ("b", 561.0, 488.0)), "(1 as wavelength, 0 as wavelength of the excitation)"),
        (2, names("Ch1", "Ch2", "Ch3"), "(2 as index, 1 as number in the name)"),
        (1, names("C01", "C02"), "(1 as index, 0 as number in the name)"),
        (1, names("Channel 1", "Channel 2"), "(1 as index, 0 as number in the name)"),
        (0, names("Track-1", "Track-0"), "(0 as index, 1 as number in the name)"),
        (514, names(("Alexa 488", 520.0), ("YFP 514", 545.0)), "(0 as wavelength, 1 as number in the name)"),
        ("514 nm", names(("Alexa 488", 520.0), ("YFP514", 545.0)), "(0 as wavelength, 1 as number in the name)"),
        (561, names(("mCherry-561", 610.0), ("GFP-488", 560.0)), "(1 as wavelength, 0 as number in the name)"),
        (4, names("Ch1", "Ch4"), "is no channel"),
        (True, names("a", "b"), "is no channel"),
        (-1, names("a", "b"), "is no channel"),
        ("", names("", ""), "is no channel"),
        (405, names("DAPI", "488"), "is no channel within 20 nm"),
    ],
)
def test_a_number_of_two_readings_is_refused_and_they_are_shown(spec, channels, shown):
    for told in (spec, str(spec)):
        with pytest.raises(UserError) as caught:
            find_channel(told, channels)
        assert shown in str(caught.value) and "did you mean" not in str(caught.value)


def test_a_constant_channel_is_said(tmp_path):
    stack = np.stack([np.full((8, 9), 7), np.arange(72).reshape(8, 9)]).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack", metadata=None)
    made = convert_file(tmp_path / "a.tif", Conversion({"nuclei": 0, "cytoplasm": 1}, axes="CYX"))[0]
    assert {level.colour: level.note for level in made.levels} == {
        "blue": "channel 0 is 7 in every pixel, its colour is empty",
        "green": "",
    }
