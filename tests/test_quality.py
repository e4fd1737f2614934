"""Quality: drawn frames with known defects are flagged, good and empty ones are not, whatever surrounds them."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cellkit.convert import to_8bit
from cellkit.quality import DEBRIS_LIMITS, FLAGS, FOCUS_LIMITS, flag_records, measure, set_aside
from cellkit.records import ImageRecord
from cellkit.synthetic import FieldStyle, draw_field, expose_stack, random_style


def frame(lines, defect, seed, style=None, planes=3, **changes):
    """Draw one frame and measure it as notebook 01 does: brightest of z, percentiles, clipped share of the original."""
    style = replace(style or FieldStyle(), **changes)
    stack = expose_stack(draw_field(lines, style, (seed, 1), defect), style, planes, (seed, 2)).max(axis=0)
    image, clipped = np.zeros((*stack.shape[1:], 3), np.uint8), 0.0
    for plane, colour in zip(stack, (2, 1), strict=True):
        image[..., colour], _, _, share = to_8bit(plane, (0.3, 99.8))
        clipped = max(clipped, share)
    return measure(image, clipped)


@pytest.fixture(scope="module")
def batch():
    """32 good frames of both lines, sparse to crowded, dim to bright, and 4 of each defect, with their names."""
    rng = np.random.default_rng(11)
    found = []
    for number in range(48):
        defect = "" if number < 32 else ("out_of_focus", "debris", "saturated", "empty")[number % 4]
        lines = (("HEK",), ("N2a",), ("HEK", "N2a"))[number % 3]
        changes = {"density": rng.uniform(0.2, 0.9), "photons": rng.uniform(60, 300), "blur_px": rng.uniform(0.9, 1.5)}
        found.append((defect, frame(lines, defect, 100 + number, planes=1 + 2 * (number % 4 == 0), **changes)))
    return found


def test_defects_are_flagged_by_name_and_good_frames_are_not(batch):
    flags, thresholds = flag_records([measured for _, measured in batch])
    for (defect, measured), flag in zip(batch, flags, strict=True):
        assert defect in flag.split(";") if defect not in ("", "empty") else flag == "", (defect, flag, measured)
    assert FOCUS_LIMITS[0] <= thresholds["focus_min"] <= FOCUS_LIMITS[1]
    assert DEBRIS_LIMITS[0] <= thresholds["debris_max"] <= DEBRIS_LIMITS[1]
    assert thresholds["batch"] == 44  # the empty ones teach nothing about focus


def test_a_frame_without_cells_is_empty_and_not_at_fault(batch):
    for defect, measured in batch:
        assert measured["empty"] == (defect == "empty")
        assert math.isnan(measured["focus"]) == math.isnan(measured["debris"]) == (defect == "empty")


def test_a_small_batch_and_a_bad_batch_are_judged_by_the_fixed_bounds(batch):
    alone = {defect: flag_records([measured])[0] for defect, measured in batch[30:]}
    assert alone == {"": [""], "out_of_focus": ["out_of_focus"], "saturated": ["saturated"], "empty": [""]} | {
        "debris": alone["debris"]
    }
    assert "debris" in alone["debris"][0]
    blurred = [measured for defect, measured in batch if defect == "out_of_focus"] * 4
    assert set(flag_records(blurred)[0]) == {"out_of_focus"}
    assert flag_records([])[0] == []


def test_random_microscopes_are_told_apart_too():
    styles = [random_style(np.random.default_rng([n, 3]), (192, 192)) for n in range(12)]
    good = [frame(("HEK", "N2a"), "", 900 + n, style, planes=1) for n, style in enumerate(styles)]
    for defect in ("debris", "saturated"):
        bad = [frame(("HEK", "N2a"), defect, 900 + n, style, planes=1) for n, style in enumerate(styles[:6])]
        flags, _ = flag_records(good + bad)
        assert not any(flags[:12]) and all(flags[12:])
        assert sum(defect in flag for flag in flags[12:]) >= 5  # much dirt saturates the camera and is called that


def test_focus_falls_with_blur_and_does_not_hang_on_brightness(batch):
    style = FieldStyle()
    focus = [frame(("HEK",), "", 5, style, planes=1, blur_px=blur)["focus"] for blur in (0.8, 1.5, 2.5, 4.0, 7.0)]
    assert (np.diff(focus[:4]) < 0).all() and focus[0] > -2.8 and focus[-1] < -3.4
    dim, bright = (frame(("HEK",), "", 5, style, planes=1, photons=photons)["focus"] for photons in (80, 320))
    assert abs(dim - bright) < 0.2


def test_flat_dark_and_tiny_pictures_are_measured_without_a_warning():  # fault 8
    for image in (np.zeros((64, 64, 3)), np.full((64, 64, 3), 255), np.zeros((3, 2, 3)), np.zeros((1, 1, 3))):
        measured = measure(image.astype(np.uint8))
        assert flag_records([measured])[0] == ["low_contrast"] and measured["empty"]
    faint = np.random.default_rng(0).integers(3, 9, (64, 64, 3), dtype=np.uint8)
    assert flag_records([measure(faint)])[0] == ["low_contrast"]


def test_a_channel_shown_twice_is_not_debris(batch):
    rng = np.random.default_rng(0)
    blobs = np.zeros((256, 256))
    for y, x in rng.integers(20, 236, (8, 2)):
        blobs[y - 6 : y + 6, x - 6 : x + 6] = 255 if y % 2 else 40
    grey = (blobs + rng.integers(0, 5, blobs.shape)).clip(0, 255).astype(np.uint8)
    assert math.isnan(measure(np.stack([grey] * 3, axis=-1))["debris"])
    assert math.isnan(measure(np.stack([grey * 0, grey * 0, grey], axis=-1))["debris"])


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3))), st.none() | st.floats(0, 1))
def test_any_picture_can_be_measured_and_judged(image, clipped):
    measured = measure(image, clipped)
    assert set(measured) == {"focus", "structure", "empty", "saturated_fraction", "contrast", "debris"}
    assert 0 <= measured["contrast"] <= 255 and 0 <= measured["saturated_fraction"] <= 1
    assert math.isfinite(measured["structure"])
    np.testing.assert_equal(measure(image.copy(), clipped), measured)
    (flag,), _ = flag_records([measured])
    assert set(flag.split(";")) <= {"", *FLAGS}


def test_set_aside_takes_flagged_images_out_of_their_split_only():
    records = [
        ImageRecord(str(k), f"{k}.png", 1, 1, split="train", flags=flags) for k, flags in enumerate(("", "debris"))
    ]
    kept = set_aside(records)
    assert [record.split for record in kept] == ["train", ""] and [r.image_id for r in kept] == ["0", "1"]
    assert kept[1].flags == "debris"
