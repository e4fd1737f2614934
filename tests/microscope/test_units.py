"""Numbers of headers: believed where they are lengths and wavelengths, unknown and said where they are not."""

import math

import pytest

from cellkit.microscope.ome_xml import length_um, positive, square_um, wavelength_nm


@pytest.mark.parametrize(
    ("value", "unit", "um"),
    [
        ("0.5", "µm", 0.5), (500, "nm", 0.5), ("500000", "pm", 0.5), ("1", "Å", 1e-4), (" 0.25 ", "Micron", 0.25),
        (2e-7, "m", 0.2), (0.001, "inch", 25.4), (5e-4, "mm", 0.5),
    ],
)  # fmt: skip
def test_a_length_in_any_unit_is_micrometres(value, unit, um):
    said = []
    assert length_um(value, unit, said) == pytest.approx(um) and not said


@pytest.mark.parametrize("value", ["0", "-1", "INF", "nan", "1e400", "0,5", "0.5 µm", "half", "1_0", 1e12, b"\xff"])
def test_what_is_no_length_is_unknown_and_said(value):
    said = []
    assert math.isnan(length_um(value, "µm", said)) and len(said) == 1 and "unknown" in said[0]


@pytest.mark.parametrize("unit", ["furlong", "Mm", "reference frame"])
def test_a_unit_of_no_length_is_unknown_and_said(unit):
    said = []
    assert math.isnan(length_um("1", unit, said)) and unit in said[0]


@pytest.mark.parametrize(("value", "unit"), [(None, "µm"), ("", "µm"), (1.0, "pixel"), ("1", ""), ("1", None)])
def test_a_file_that_knows_no_size_says_nothing(value, unit):
    said = []
    assert math.isnan(length_um(value, unit, said)) and not said


def test_pixels_that_are_not_square_have_no_one_size():
    said = []
    assert square_um(0.5, 0.502, said) == 0.5 and square_um(0.5, math.nan, said) == 0.5 and not said
    assert math.isnan(square_um(0.5, 1.0, said)) and "0.5 um wide and 1 um high" in said[0]


def test_wavelengths_that_are_none_are_unknown_and_said():
    said = []
    assert wavelength_nm("0.52", "µm", said) == 520 and not said
    assert all(math.isnan(wavelength_nm(told, "nm", said)) for told in ("Far Red", "0", "-488", "inf"))
    assert len(said) == 4 and math.isnan(positive([]))


@pytest.mark.parametrize("nm", ["99999999", 3001, "99", "0.488"])
def test_a_wavelength_of_no_microscope_is_unknown_and_said(nm):
    said = []
    assert math.isnan(wavelength_nm(nm, "nm", said)) and "none of a microscope" in said[0]
    assert [wavelength_nm(told, "nm", []) for told in (100, 3000)] == [100, 3000]


def test_a_pixel_of_no_microscope_is_unknown_and_said_and_a_whole_image_may_be_larger():
    said = []
    assert math.isnan(length_um("64", "mm", said)) and math.isnan(length_um(1001, "um", said)) and len(said) == 2
    assert "none of a microscope" in said[0] and length_um(1, "mm", said) == 1000 and len(said) == 2
    assert length_um(64, "mm", said, largest_um=math.inf) == 64000 and len(said) == 2
