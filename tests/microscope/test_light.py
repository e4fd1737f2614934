"""From grey values to light: of one image, and of a whole batch."""

import math
from dataclasses import replace

import numpy as np
import pytest
import tifffile
from conftest import convert_file
from convert_cases import NUCLEI, write
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cellkit.errors import UserError
from cellkit.microscope.batch import measure_light
from cellkit.microscope.channels import find_channel
from cellkit.microscope.convert import Conversion
from cellkit.microscope.file_info import Channel
from cellkit.microscope.light import Light, to_8bit

# ---- light of a batch ----------------------------------------------------------------------------------------------

planes_of_any_kind = st.sampled_from([np.uint8, np.uint16, np.int32, np.float32]).flatmap(
    lambda dtype: hnp.arrays(
        dtype, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 200).map(dtype)
    )
)


@given(st.lists(planes_of_any_kind, min_size=1, max_size=5), st.floats(0, 100))
def test_light_of_many_planes_has_the_percentiles_of_all_their_pixels(planes, q):
    pixels = np.concatenate([plane.ravel() for plane in planes]).astype(float)
    light = Light.sum(map(Light.of, planes))
    assert light.counts.sum() == pixels.size and (np.diff(light.values) > 0).all()
    assert light.percentiles([q])[0] == pytest.approx(np.percentile(pixels, q), rel=1e-9, abs=1e-9)
    twice = Light.sum([Light.sum([Light.of(plane)]) for plane in planes])
    np.testing.assert_array_equal(light.counts, twice.counts)


def test_light_of_floats_keeps_no_more_values_than_fit_and_stays_close():
    plane = np.random.default_rng(0).gamma(2.0, 100.0, (400, 400)).astype(np.float32)
    light = Light.sum([Light.of(plane), Light.of(plane * 2)])
    both = np.concatenate([plane.ravel(), 2 * plane.ravel()])
    assert len(light.values) <= 2**16 and light.counts.sum() == both.size
    np.testing.assert_allclose(light.percentiles((0.3, 50, 99.8)), np.percentile(both, (0.3, 50, 99.8)), rtol=0.01)
    with pytest.raises(UserError, match="NaN"):
        Light.of(np.array([[np.nan]]))


def test_a_batch_is_measured_and_then_scaled_by_what_was_measured(tmp_path):
    paths = [write(tmp_path / f"{k}.ome.tif", NUCLEI // k, "YX") for k in (1, 4)]
    own = Conversion({"nuclei": 0}, percentiles=(0, 100))
    limits = measure_light(paths, own)
    assert limits == {"blue": [0, 59_900]}
    bright, dim = (convert_file(path, replace(own, limits=limits))[0] for path in paths)
    assert (bright.image.max(), dim.image.max()) == (255, 64) and dim.levels[0].high == 59_900
    (alone,) = convert_file(paths[1], own)
    assert alone.image.max() == 255, "without them each image has its own scale"


# ---- light, one by one ---------------------------------------------------------------------------------------------


def test_16_bit_is_scaled_not_clipped_to_8():  # fault 7
    image, low, high, _ = to_8bit(np.array([[100, 20_000, 40_000, 60_000]], np.uint16), (0, 100))
    assert image.tolist() == [[0, 85, 170, 255]] and (low, high) == (100, 60_000)


def test_constant_saturated_and_sparse_planes_stay_finite():  # fault 8
    for value in (0, 7, 65535):
        image, low, high, clipped = to_8bit(np.full((4, 5), value, np.uint16), (0.3, 99.8))
        assert not image.any() and low == high == value and clipped == 0
    sparse = np.zeros((100, 100), np.uint16)
    sparse[5, 5] = 900
    image, low, high, _ = to_8bit(sparse, (0.3, 99.8))
    assert low == high == 0 and image[5, 5] == 255 and image.sum() == 255
    saturated = np.minimum(NUCLEI, 30_000)
    assert to_8bit(saturated, (0.3, 99.8))[3] == pytest.approx(np.mean(NUCLEI >= 30_000))


def test_nan_infinity_and_complex_are_refused_with_their_count():  # fault 9
    plane = NUCLEI.astype(np.float32)
    plane[0, :3] = np.nan, np.inf, -np.inf
    with pytest.raises(UserError, match="the plane holds 3 pixels that are NaN"):
        to_8bit(plane, (0.3, 99.8))
    with pytest.raises(UserError, match="complex"):
        to_8bit(NUCLEI.astype(complex), (0.3, 99.8))
    for wrong in ((50, 50), (60, 40), (-1, 99), (0, 101)):
        with pytest.raises(UserError, match="percentiles"):
            to_8bit(NUCLEI, wrong)


def test_signed_float_and_bool_planes_are_scaled_too():
    for dtype in (np.int16, np.int32, np.float16, np.float32, np.uint32):
        image, low, high, _ = to_8bit((NUCLEI // 30).astype(dtype), (0, 100))
        assert image[0, 0] == 0 and image[-1, -1] == 255 and low == 0 and high == pytest.approx(1996, abs=1)
    assert to_8bit(np.array([[True, False]]), (0, 100))[0].tolist() == [[255, 0]]


def test_percentiles_null_keeps_8_bit_values_and_refuses_others():
    plane = (NUCLEI // 300).astype(np.uint8)
    np.testing.assert_array_equal(to_8bit(plane, None)[0], plane, strict=True)
    with pytest.raises(UserError, match="uint16 and percentiles is null"):
        to_8bit(NUCLEI, None)


def test_of_several_channels_the_first_that_a_file_has_is_taken(tmp_path):
    file, grey = (
        (Channel("actin", 520.0), Channel("Hoechst", math.nan), Channel("0", math.nan)),
        (Channel("", math.nan),),
    )
    wanted = ("DAPI", "hoechst", 0)
    assert find_channel(wanted, file) == find_channel(list(wanted), file) == 1 and find_channel(wanted, grey) == 0
    with pytest.raises(UserError, match="none of 'DAPI', 'GFP' is a channel of a.tif, which has 3 channels"):
        find_channel(("DAPI", "GFP"), file, "a.tif")
    with pytest.raises(
        UserError, match="' 0' fits 2 channels"
    ):  # it has one of the name and one of the number: not passed over
        find_channel(("DAPI", " 0", "actin"), file)
    tifffile.imwrite(tmp_path / "a.tif", NUCLEI)
    (made,) = convert_file(tmp_path / "a.tif", Conversion({"nuclei": ["DAPI", 0]}))
    assert [level.channel for level in made.levels] == ["channel 0"]
    with pytest.raises(UserError, match="one channel is the first that fits for two colours"):
        convert_file(tmp_path / "a.tif", Conversion({"nuclei": ["DAPI", 0], "cytoplasm": ["GFP", 0]}))
