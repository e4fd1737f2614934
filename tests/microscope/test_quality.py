"""Quality: drawn frames with known defects are flagged, good and empty ones are not, whatever surrounds them."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cellkit.cells.drawn.camera import expose_stack
from cellkit.cells.drawn.field import draw_field
from cellkit.cells.drawn.style import FieldStyle, random_style
from cellkit.cells.records import ImageRecord, is_scored
from cellkit.config.parts import QualityConfig
from cellkit.errors import UserError
from cellkit.microscope.duplicates import POSITIONS, Duplicate, find_duplicates, handle_duplicates, refuse_duplicates
from cellkit.microscope.flags import (
    BLUR_LIMITS,
    DEBRIS_LIMITS,
    FLAGS,
    exclude_flagged,
    explain,
    flag_records,
    name_flagged,
    quality_summary,
    reasons,
)
from cellkit.microscope.light import to_8bit
from cellkit.microscope.quality import measure


def frame(lines, defect, seed, style=None, planes=3, **changes):
    """Draw one frame and measure it as notebook 01 does: brightest of z, percentiles, clipped share of the original."""
    style = replace(style or FieldStyle(), **changes)
    stack = expose_stack(draw_field(lines, style, (seed, 1), defect), style, planes, (seed, 2)).max(axis=0)
    return measure(*picture(stack))


def picture(stack):
    """Return (2, H, W) counts as an 8-bit picture, and the share of pixels at the camera's limit."""
    image, clipped = np.zeros((*stack.shape[1:], 3), np.uint8), 0.0
    for plane, colour in zip(stack, (2, 1), strict=True):
        image[..., colour], _, _, share = to_8bit(plane, (0.3, 99.8))
        clipped = max(clipped, share)
    return image, clipped


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
    assert BLUR_LIMITS[0] <= thresholds["blur_px_max"] <= BLUR_LIMITS[1]
    assert DEBRIS_LIMITS[0] <= thresholds["debris_max"] <= DEBRIS_LIMITS[1]
    assert thresholds["batch"] == 44  # the empty ones teach nothing about focus


def test_a_frame_without_cells_is_empty_and_not_at_fault(batch):
    for defect, measured in batch:
        assert measured["empty"] == (defect == "empty")
        assert math.isnan(measured["blur_px"]) == math.isnan(measured["debris"]) == (defect == "empty")


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


@pytest.mark.parametrize("kind", ["one microscope", "a new microscope for every frame"])
def test_nearly_all_blurred_and_saturated_frames_are_flagged_and_hardly_a_good_one(kind):
    """At least 95 % of out-of-focus and saturated frames, at most 3 % of good ones; benchmarks/bench_quality.py has more."""
    measured, defects = [], []
    for number in range(80):
        defect = "" if number < 36 else ("out_of_focus", "saturated")[number % 2]
        rng = np.random.default_rng([number, 5])
        style = FieldStyle(size_px=(224, 224), density=rng.uniform(0.2, 0.9), photons=rng.uniform(60, 300))
        style = style if kind == "one microscope" else random_style(rng, (224, 224))
        measured.append(frame((("HEK",), ("N2a",), ("HEK", "N2a"))[number % 3], defect, 3000 + number, style, 1))
        defects.append(defect)
    flags, _ = flag_records(measured)
    told = list(zip(defects, flags, strict=True))
    for defect in ("out_of_focus", "saturated"):
        assert np.mean([defect in flag.split(";") for one, flag in told if one == defect]) >= 0.95
    assert np.mean([flag != "" for one, flag in told if one == ""]) <= 0.03


def test_blur_is_measured_in_px_and_does_not_hang_on_brightness_or_size():
    blurs = [frame(("HEK",), "", 5, planes=1, blur_px=blur)["blur_px"] for blur in (0.8, 1.5, 2.5, 4.0, 7.0)]
    assert (np.diff(blurs) > 0).all() and blurs[0] < 2 and blurs[-1] > 4
    assert np.abs(np.array(blurs[2:]) - (2.5, 4.0, 7.0)).max() < 1.6
    dim, bright = (frame(("HEK",), "", 5, planes=1, photons=photons)["blur_px"] for photons in (80, 320))
    assert abs(dim - bright) < 0.4
    small, large = (frame(("HEK",), "", 5, planes=1, diameter_px=d)["blur_px"] for d in (20.0, 60.0))
    assert abs(small - large) < 0.8


def test_uneven_light_is_seen_in_the_ground_and_in_the_cells():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:256, :256] / 255
    cells = np.zeros((256, 256))
    for cy, cx in np.mgrid[12:250:24, 12:250:24].reshape(2, -1).T:
        cells[cy - 5 : cy + 5, cx - 5 : cx + 5] = rng.uniform(130, 170)
    noise = rng.normal(0, 3, cells.shape)
    measured = {
        "even": cells + 20,
        "a glow": cells * 0.6 + 20 + 120 * x * y,
        "a dark side": (cells + 20) * (1 - 0.8 * x),
    }
    for name, light in measured.items():
        grey = np.clip(light + noise, 0, 255).astype(np.uint8)
        measured[name] = measure(np.stack([grey, 0 * grey, 0 * grey], axis=-1))
    assert measured["even"]["uneven"] < 0.05
    assert min(measured["a glow"]["uneven"], measured["a dark side"]["uneven"]) > 0.35
    flags, _ = flag_records(list(measured.values()))
    assert flags == ["", "uneven_light", "uneven_light"]


def test_the_limits_and_the_reasons_are_told_in_words(batch):
    flags, thresholds = flag_records([measured for _, measured in batch])
    words = explain(thresholds, flags)
    assert len(words) == len(FLAGS) and words[0].startswith("out of focus: 4 images flagged: blurred by more than ")
    assert "learned from 44 training images with cells; convert.quality.out_of_focus: false keeps" in words[0]
    for flag, (_, measured) in zip(flags, batch, strict=True):
        told = reasons(measured, thresholds, flag)
        assert len(told) == len([f for f in flag.split(";") if f])
        assert all(line.startswith(f.replace("_", " ")) for line, f in zip(told, flag.split(";"), strict=False))
    grey = measure(np.random.default_rng(0).integers(3, 9, (64, 64, 3), dtype=np.uint8))
    (line,) = reasons(grey, flag_records([grey])[1], "low_contrast")
    assert line == "low contrast: 5 grey levels, limit 10"


def test_every_flag_can_be_switched_off_by_the_key_that_its_message_names(batch):
    measured = [one for _, one in batch]
    measured += [measured[0] | {"uneven": 0.9}, measured[1] | {"contrast": 3.0}]
    flags, limits = flag_records(measured)
    for name in FLAGS:
        assert any(name in flag.split(";") for flag in flags)
        quality = QualityConfig.model_validate({name: False})
        assert quality.off == (name,)
        quiet, same = flag_records(measured, off=quality.off)
        assert same == limits and quiet == [";".join(f for f in flag.split(";") if f != name) for flag in flags]
        assert sum(f"convert.quality.{name}: false" in line for line in explain(limits, flags)) == 1
        (line,) = (line for line in explain(limits, quiet, quality.off) if "switched off" in line)
        assert line.startswith(name.replace("_", " "))


def test_limits_are_learned_from_training_images_and_test_images_decide_nothing(batch):
    measured = [one for defect, one in batch if not defect][:12]
    taught = [True] * 12
    flags, limits = flag_records(measured, learned_from=taught)
    for odd in ({"blur_px": 9.0}, {"uneven": 0.29, "debris": 3.2}, {"structure": 0.8, "blur_px": 2.9}):
        more = [one | odd for one in measured * 3]
        with_tests, same = flag_records(measured + more, learned_from=taught + [False] * len(more))
        assert same == limits and with_tests[:12] == flags
        assert flag_records(measured + more)[1] != limits


GIANTS = {
    "in the middle": (64, 64, 50),
    "off the middle": (44, 84, 40),
    "in a corner": (20, 20, 62),
    "at a side": (64, 128, 60),
}


@pytest.mark.parametrize("where", GIANTS)
@pytest.mark.parametrize("form", ["flat", "soft", "dome"])
def test_one_giant_cell_is_no_uneven_light(where, form):
    import cv2

    rng, (cy, cx, radius) = np.random.default_rng(1), GIANTS[where]
    y, x = np.mgrid[:128, :128]
    height = 1 - ((y - cy) ** 2 + (x - cx) ** 2) / radius**2
    cell = np.sqrt(np.maximum(height, 0)) if form == "dome" else (height >= 0).astype(float)
    image = np.zeros((128, 128, 3))
    for channel, light in ((1, 120), (2, 150)):
        image[..., channel] = rng.integers(0, 30, cell.shape) * (cell == 0) + rng.normal(light, 20, cell.shape) * cell
    image = cv2.GaussianBlur(image, (0, 0), 3.0) if form == "soft" else image
    measured = measure(image.clip(0, 255).astype(np.uint8))
    assert not measured["empty"] and measured["uneven"] < 0.1


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


KEYS = (
    *("blur_px", "structure", "empty", "saturated_fraction", "contrast", "uneven", "debris"),
    *("content", "fingerprint"),
)


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3))), st.none() | st.floats(0, 1))
def test_any_picture_can_be_measured_and_judged(image, clipped):
    measured = measure(image, clipped)
    assert set(measured) == set(KEYS)
    assert math.isnan(measured["blur_px"]) or 0 <= measured["blur_px"] < 60
    assert math.isnan(measured["uneven"]) or 0 <= measured["uneven"] <= 1
    assert len(measured["content"]) == len(measured["fingerprint"]) == 64
    assert 0 <= measured["contrast"] <= 255 and 0 <= measured["saturated_fraction"] <= 1
    assert math.isfinite(measured["structure"])
    np.testing.assert_equal(measure(image.copy(), clipped), measured)
    (flag,), _ = flag_records([measured])
    assert set(flag.split(";")) <= {"", *FLAGS}


def test_set_aside_takes_flagged_images_out_of_their_split_only():
    records = [
        ImageRecord(str(k), f"{k}.png", 1, 1, split="train", flags=flags) for k, flags in enumerate(("", "debris"))
    ]
    kept = exclude_flagged(records)
    assert [record.split for record in kept] == ["train", ""] and [r.image_id for r in kept] == ["0", "1"]
    assert kept[1].flags == "debris"


def test_a_flagged_test_image_stays_a_test_image_and_every_flagged_image_is_named():
    flags = {"a": ("train", "copy"), "b": ("test", "saturated"), "c": ("val", ""), "d": ("test", "")}
    records = [ImageRecord(name, f"{name}.png", 1, 1, split=split, flags=f) for name, (split, f) in flags.items()]
    kept = exclude_flagged(records)
    assert [record.split for record in kept] == ["", "test", "val", "test"]
    assert [is_scored(record) for record in kept] == [False, False, True, True]
    rows = [{"saturated_fraction": 0.089}] * 4
    assert name_flagged(kept, rows, flag_records([])[1], [Duplicate("a", "d", "", 0.9)]) == [
        "a: copy: shows the field of another image (d; convert.duplicates: keep keeps both): not used",
        "b: saturated: 8.9 % of the pixels saturated, limit 3 %: predicted and handed in, not scored",
    ]


# ---- copies --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def fields():
    """Four fields of one slide, and the first again under another light and noise."""
    style = FieldStyle(size_px=(200, 256))
    drawn = [draw_field(("HEK",), style, (seed, 1)) for seed in (1, 2, 3, 4)]
    return [picture(expose_stack(field, style, 1, (9, k))[0])[0] for k, field in enumerate([*drawn, drawn[0]])]


def found_in(tmp_path, pictures, splits=None):
    from conftest import write_png

    records = []
    for k, image in enumerate(pictures):
        write_png(tmp_path / f"{k}.png", np.ascontiguousarray(image))
        records.append(ImageRecord(str(k), f"{k}.png", *image.shape[:2], split=splits[k] if splits else "train"))
    quality = [measure(np.ascontiguousarray(image)) for image in pictures]
    return records, find_duplicates(records, quality, tmp_path)


def test_a_second_exposure_is_a_copy_and_neighbouring_fields_are_none(tmp_path, fields):
    _, copies = found_in(tmp_path, fields)
    assert [(c.first, c.second, c.how) for c in copies] == [("0", "4", "the same field")]
    assert 0.75 <= copies[0].likeness < 1


DISGUISES = {
    "the same pixels": lambda image: image,
    "the same field": lambda image: (image * 0.5).astype(np.uint8),
    "shifted by about 6 px": lambda image: image[4:, 4:],
    "turned by 90°": lambda image: np.rot90(image),
    "turned by 180°": lambda image: np.rot90(image, 2),
    "turned by 270°": lambda image: np.rot90(image, 3),
    "mirrored left to right": lambda image: image[:, ::-1],
    "mirrored top to bottom": lambda image: image[::-1],
    "mirrored along a diagonal": lambda image: image.swapaxes(0, 1),
    "mirrored along the other diagonal": lambda image: np.rot90(image, 2).swapaxes(0, 1),
}


@pytest.mark.parametrize("how", DISGUISES)
def test_a_copy_is_found_in_any_disguise_and_its_disguise_is_told(tmp_path, fields, how):
    disguised = DISGUISES[how](fields[1])
    _, copies = found_in(tmp_path, [fields[0], fields[1], fields[2], disguised])
    undone = {"turned by 90°": "turned by 270°", "turned by 270°": "turned by 90°"}  # said of the way back
    (copy,) = copies
    assert (copy.first, copy.second) == ("1", "3")
    assert undone.get(copy.how, copy.how) == how
    assert set(DISGUISES) - {"the same pixels", "the same field", "shifted by about 6 px"} == set(
        POSITIONS.values()
    ) - {""}


@pytest.mark.parametrize("size", [(64, 64), (80, 80), (97, 97), (112, 112), (64, 90), (40, 256), (24, 200), (256, 16)])
def test_small_pictures_and_strips_are_measured_and_their_copies_found(tmp_path, size):
    import cv2

    rng = np.random.default_rng(sum(size))
    parts = []
    for _ in range(4):
        grey = np.zeros(size, np.uint8)
        for y, x in rng.integers((0, 0), size, (max(6, math.prod(size) // 400), 2)).tolist():
            cv2.circle(grey, (x, y), int(rng.integers(3, 6)), int(rng.integers(90, 200)), -1)
        grey = cv2.GaussianBlur(grey, (0, 0), 1.0) + rng.integers(10, 16, size)
        parts.append(np.stack([grey * 0, grey * 0, grey], axis=-1).astype(np.uint8))
    for image in parts:
        measured = measure(image)
        assert not measured["empty"] and 0 <= measured["blur_px"] < 2
    _, copies = found_in(tmp_path, [*parts, parts[0][::-1, ::-1], np.rot90(parts[2])])
    assert [(c.first, c.second) for c in copies] == [("0", "4"), ("2", "5")]


@pytest.mark.parametrize("size", [64, 80, 100])
def test_small_pictures_of_one_round_cell_each_are_no_copies(tmp_path, size):
    import cv2

    rng, shots = np.random.default_rng(size), []
    for k in range(8):
        grey = np.zeros((size, size), np.uint8)
        axes = (10 + k % 3, 13 - k // 3)
        cv2.ellipse(grey, (size // 2 + k % 2, size // 2 - k // 4), axes, 20 * k, 0, 360, 150 + k, -1)
        grey = cv2.GaussianBlur(grey, (0, 0), 1.0) + rng.integers(5, 25, (size, size))
        shots.append(np.stack([grey * 0, grey * 0, grey], axis=-1).astype(np.uint8))
    _, copies = found_in(tmp_path, [*shots, np.rot90(shots[3])])
    assert [(c.first, c.second) for c in copies] == [("3", "8")]


def test_empty_fields_are_copies_only_when_their_pixels_are_equal(tmp_path):
    style = FieldStyle(size_px=(128, 128))
    field = draw_field(("HEK",), style, 1, "empty")
    shots = [picture(expose_stack(field, style, 1, k)[0])[0] for k in (1, 2)]
    _, copies = found_in(tmp_path, [*shots, shots[0]])
    assert [(c.first, c.second, c.how) for c in copies] == [("0", "2", "the same pixels")]
    black = np.zeros((64, 64, 3), np.uint8)
    assert found_in(tmp_path, [black, np.zeros((32, 64, 3), np.uint8), black + 1])[1] == []


def test_frames_of_one_file_are_compared_with_the_next_and_with_all_others(tmp_path, fields):
    records, copies = found_in(tmp_path, [fields[0]] * 4 + [fields[1]])
    assert len(copies) == 6
    quality = [measure(np.ascontiguousarray(fields[k == 4])) for k in range(5)]
    movie = [replace(record, file="m.tif" if k < 3 else "n.tif", time=k) for k, record in enumerate(records)]
    found = lambda records: [f"{c.first}{c.second}" for c in find_duplicates(records, quality, tmp_path)]  # noqa: E731
    assert found(movie) == ["01", "03", "12", "13", "23"]
    assert found([replace(movie[0], split="test"), *movie[1:]]) == ["01", "02", "03", "12", "13", "23"]


def test_of_copies_in_two_splits_the_test_image_stays():
    splits = ("train", "test", "val", "train", "train", "val")
    records = [ImageRecord(str(k), f"{k}.png", 1, 1, split=split) for k, split in enumerate(splits)]
    copies = [Duplicate("0", "1", "", 0.9), Duplicate("1", "2", "", 0.9), Duplicate("3", "4", "", 0.9)]
    kept = handle_duplicates(records, copies)
    assert [record.flags for record in kept] == ["copy", "", "copy", "", "", ""]
    assert [record.split for record in exclude_flagged(kept)] == ["", "test", "", "train", "train", "val"]
    refuse_duplicates(exclude_flagged(kept), copies)
    assert handle_duplicates(records, copies, "keep") == records
    with pytest.raises(UserError, match=r"2 pairs of images of the same field .*0 \(train\) and 1 \(test\)"):
        handle_duplicates(records, copies, "refuse")
    with pytest.raises(UserError, match="convert.duplicates is 'drop'\nchoose"):
        handle_duplicates(records, copies, "drop")
    told = quality_summary(flag_records([])[1], ["copy"], copies)
    assert told["copies"][0] == {"first": "0", "second": "1", "how": "", "likeness": 0.9} and len(told["words"]) == 5


def test_images_set_aside_for_another_reason_pull_no_copy_with_them():
    records = [ImageRecord("0", "0", 1, 1, split="test", flags="debris"), ImageRecord("1", "1", 1, 1, split="train")]
    assert handle_duplicates(records, [Duplicate("0", "1", "", 1.0)]) == records


def test_fields_photographed_twice_in_a_published_set_are_found(tmp_path, data_folder):
    """dkfz has two fields under two names each, in other light; their neighbours on the slide are no copies."""
    from cellkit.config.sections import ChannelsConfig, ConvertConfig
    from cellkit.modules import load

    config = ConvertConfig(
        source="labelme",
        classes=("UndifferentiatedMSC", "Myofibroblast"),
        class_names={"PartiallydifferentiatedMSC": None},
        channels=ChannelsConfig(nuclei="blue", cytoplasm="red"),
    )
    wanted = [f"train_{n}" for n in ("0034", "0036", "0041", "0155", "0156", "0221", "0222")]
    items = {item.image_id: item for item in load("source", "labelme").read(data_folder / "dkfz", config)}
    names = [name for name in wanted if name in items]
    _, copies = found_in(tmp_path, [items[name].load().image for name in names])
    pairs = {(names[int(copy.first)], names[int(copy.second)]) for copy in copies}
    assert pairs == {("train_0036", "train_0041"), ("train_0155", "train_0221")}


def test_a_quality_check_says_what_its_parts_say(drawn):
    from types import SimpleNamespace

    from cellkit.config.sections import ConvertConfig
    from cellkit.microscope.flags import check_quality

    rows = [measure(image) for image in drawn.images()]
    rows[0] |= {"saturated_fraction": 0.5}
    flags, thresholds = flag_records(rows)
    images = drawn.with_records([replace(r, flags=f) for r, f in zip(drawn.records, flags, strict=True)])
    config = ConvertConfig(classes=("HEK", "N2a"), quality=QualityConfig(debris=False))
    converted = SimpleNamespace(images=images, quality=rows, thresholds=thresholds)
    check = check_quality(converted, drawn.root, config)
    assert check.records == exclude_flagged(images.records) and check.duplicates == []
    assert check.limits.split("\n") == explain(thresholds, flags, ["debris"])
    named = name_flagged(check.records, rows, thresholds, [])
    assert named and check.flagged.split("\n  ") == [f"{len(named)} of {len(rows)} images flagged", *named]
    assert check.summary == quality_summary(thresholds, flags, [], ["debris"])
    copies = images.with_records([replace(r, image_id=f"copy of {r.image_id}", split="test") for r in images.records])
    both = replace(images, records=images.records + copies.records, instances=images.instances * 2, ids=[], made_by=[])
    again = check_quality(SimpleNamespace(images=both, quality=rows * 2, thresholds=thresholds), drawn.root, config)
    assert len(again.duplicates) == len(rows) and "copy" in again.records[1].flags
    with pytest.raises(UserError, match="split"):
        refusing = config.model_copy(update={"duplicates": "refuse"})
        check_quality(SimpleNamespace(images=both, quality=rows * 2, thresholds=thresholds), drawn.root, refusing)
