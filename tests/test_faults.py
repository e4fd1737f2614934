"""Faults to survive, met as a user meets them: a test for each, here or where `ELSEWHERE` says.

An image that is bad is skipped with its reason, the exit code is 3 (0 with ``--allow-skips``), and nothing half-written
is left; what cannot be skipped is refused in two lines, with exit code 2.
"""

import re
import struct
import zlib
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from conftest import convert_file
from fault_cases import GREY, RNG, config, refused, save, table  # noqa: F401
from PIL import Image

from cellkit.errors import UserError
from cellkit.microscope.convert import Conversion
from cellkit.sources.ingest import convert_images

TESTS = Path(__file__).parent

# row: tests in other files that show what is required; rows that are not here have a test_row_NN below
ELSEWHERE = {
    1: ["test_open:test_a_tiff_cut_short_is_refused_and_never_becomes_fewer_planes",
        "test_raw_files:test_a_file_cut_short_is_refused_and_never_becomes_fewer_or_blacker_planes",
        "test_labels_refusals:test_a_truncated_tiff_is_refused"],
    2: ["test_open:test_a_picture_cut_short_is_refused",
         "test_labels_refusals:test_a_truncated_png_is_refused_where_cv2_gives_none",
        "test_predict:test_bad_images_are_set_aside_and_named"],
    3: ["test_open:test_empty_files_and_files_of_another_kind_are_refused",
        "test_batch:test_a_bad_file_is_set_aside_and_said_by_the_exit_code",
        "test_sources:test_bad_images_are_set_aside_with_their_reason_and_the_rest_goes_on"],
    4: ["test_open:test_a_header_that_claims_too_much_is_refused_before_reading",
        "test_labels_refusals:test_a_header_that_claims_a_giant_is_refused_before_it_is_read"],
    8: ["test_light:test_constant_saturated_and_sparse_planes_stay_finite",
        "test_quality:test_flat_dark_and_tiny_pictures_are_measured_without_a_warning"],
    9: ["test_light:test_nan_infinity_and_complex_are_refused_with_their_count"],
    10: ["test_open:test_grey_colour_palette_and_alpha_are_told_apart",
         "test_sources:test_a_channel_that_no_image_has_is_said_once_with_the_channels_there_are"],
    11: ["test_labels:test_palette_png_gives_indices_where_others_give_colours",
         "test_label_layouts:test_a_palette_label_image_gives_its_indices",
         "test_labels_refusals:test_colour_pictures_are_no_labels"],
    12: ["test_open:test_stated_axes_are_followed_wherever_they_lie",
         "test_open:test_separate_pages_are_not_guessed_to_be_time_or_depth"],
    13: ["test_label_layouts:test_label_images_that_may_have_lost_ids_are_refused",
         "test_labels_refusals:test_a_tiff_with_jpeg_inside_is_refused",
         "test_convert:test_images_shrink_by_area_and_labels_follow_on_the_same_grid"],
    14: ["test_labels:test_the_type_never_wraps", "test_label_layouts:test_more_labels_than_16_bits_hold_stay_apart"],
    15: ["test_labels:test_seventy_thousand_cells", "test_label_layouts:test_more_labels_than_16_bits_hold_stay_apart",
         "test_coco:test_seventy_thousand_cells", "test_seg:test_label_images_of_any_number_of_cells"],
    16: ["test_label_layouts:test_a_mask_of_all_cells_is_not_taken_for_one_cell",
         "test_statistics:test_every_label_fault_is_found"],
    17: ["test_label_layouts:test_objects_in_pieces_are_what_the_config_says", "test_labels:test_cleaning_pieces"],
    18: ["test_label_layouts:test_holes_gaps_and_images_without_cells_stay_as_they_are",
         "test_exchange:test_polygons_come_with_a_statement",
         "test_roi:test_a_ring_and_a_cell_of_two_pieces_are_composites"],
    19: ["test_label_layouts:test_more_labels_than_16_bits_hold_stay_apart",
         "test_annotate:test_small_cells_are_dropped_told_and_ids_stay",
         "test_coco:test_what_is_written_comes_back"],
    21: ["test_sources:test_bad_images_are_set_aside_with_their_reason_and_the_rest_goes_on",
         "test_sides:test_two_sizes_of_one_image"],
    22: ["test_labels:test_relabel_is_dense_and_can_be_undone",
         "test_label_layouts:test_holes_gaps_and_images_without_cells_stay_as_they_are"],
    23: ["test_sources:test_two_files_that_become_one_image_are_refused_by_name",
         "test_batch:test_a_frame_of_one_file_never_takes_the_place_of_another_file"],
    24: ["test_batch:test_awkward_names_go_all_the_way", "test_sources:test_awkward_names_go_all_the_way",
         "test_run:test_paths_with_braces_spaces_and_letters_of_any_kind", "test_cli_commands:test_names_that_begin_with_a_dash"],
    25: ["test_batch:test_loops_of_links_end_and_links_to_nowhere_are_set_aside",
         "test_sources:test_links_are_not_followed_in_circles_nor_out_of_the_folder",
         "test_convert:test_ids_that_collide_name_both_files"],
    26: ["test_coco_refusals:test_a_fault_is_named", "test_submission:test_every_refusal_names_line_and_reason"],
    27: ["test_coco_refusals:test_a_fault_is_named", "test_parity:test_tripwire_a_short_rle_shows_uninitialised_memory"],
    28: ["test_coco_others:test_what_is_no_polygon_is_refused",
         "test_coco_others:test_a_polygon_far_beyond_the_image_is_cut_and_neither_hangs_nor_crashes"],
    29: ["test_submission:test_resolved_objects_are_disjoint_and_stay_so",
         "test_submission:test_higher_score_keeps_the_pixel_earlier_object_a_tie",
         "test_cli_commands:test_submissions_have_no_overlap"],
    30: ["test_coco_others:test_annotation_ids_start_at_1_because_pycocotools_loses_a_match_of_id_0",
         "test_cocosets:test_files_of_cvat_need_a_word_and_image_ids_from_zero_are_read"],
    31: ["test_sides:test_results_on_images_the_truth_lacks", "test_cli_commands:test_images_that_do_not_match"],
    32: ["test_coco_others:test_missing_area_and_iscrowd_and_extra_keys_do_no_harm",
         "test_coco_others:test_crowd_regions_are_not_annotated_and_labelled_cells_in_them_are_known",
         "test_coco_others:test_ids_may_be_texts_or_whole_floats_and_lists_may_be_in_any_order",
         "test_compare:test_a_crowd_absorbs_detections_whatever_the_convention"],
    33: ["test_sides:test_no_results_are_results",
         "test_coco_others:test_an_empty_results_list_is_no_cell_where_pycocotools_fails"],
    34: ["test_parity:test_a_score_that_is_no_number_is_refused",
         "test_coco_others:test_a_nan_score_is_refused_where_pycocotools_calls_it_perfect"],
    35: ["test_coco_others:test_more_than_100_cells_need_a_higher_cap_upstream_and_none_here",
         "test_parity:test_tripwire_only_the_best_hundred_count_unless_told"],
    36: ["test_training:test_loss_that_is_not_finite_stops_and_keeps_the_last_good",
         "test_report:test_models_that_find_no_cell_are_scored_0_and_named",
         "test_judging:test_what_was_not_kept_is_not_handed_in"],
    37: ["test_in_parts:test_what_does_not_fit_is_halved_and_then_cut_into_tiles_and_the_step_stays_the_same",
         "test_in_parts:test_a_training_that_runs_out_of_memory_ends_like_one_that_does_not",
         "test_in_parts:test_memory_for_nothing_is_an_error_that_says_what_to_do"],
    38: ["test_files:test_a_full_disk_keeps_the_old_file", "test_archives:test_the_disk_fills_up", "test_download:test_no_room",
         "test_batch_resume:test_a_full_disk_stops_the_batch_and_leaves_nothing_half_written",
         "test_run_refusals:test_a_full_disk_is_told_before_the_run"],
    39: ["test_kills:test_killed_at_random_points_the_files_are_those_of_undisturbed_work",
         "test_run_processes:test_killed_at_any_point_of_stage_done_it_is_all_there_or_none",
         "test_run_processes:test_killing_the_runner_ends_the_kernel_and_a_repetition_finishes",
         "test_notebooks:test_a_run_killed_and_repeated_makes_what_one_never_killed_does",
         "test_batch_resume:test_a_batch_killed_at_any_point_goes_on_and_ends_with_the_same_bytes",
         "test_training:test_killed_and_repeated_ends_like_never_killed", "test_weights:test_cut_short",
         "test_fetch_weights:test_goes_on_after_kill_9", "test_moved:test_an_interrupted_stage_goes_on_from_what_it_had"],
    40: ["test_attacks:test_attack_01_pickle_in_a_checkpoint", "test_weights:test_code_in_a_file_is_not_run",
         "test_fetch_weights:test_code_and_other_networks_are_not_taken"],
    41: ["test_attacks:test_attack_02_pickle_in_a_seg_file", "test_seg:test_a_seg_file_runs_nothing",
         "test_plain_pickle:test_no_other_name_is_let_through",
         "test_label_layouts:test_cellpose_files_that_disagree_or_run_code_are_refused"],
    42: ["test_fetch:test_says_what_to_carry_here", "test_fetch:test_offline_names_every_file",
         "test_fetch_weights:test_not_here",
         "test_weights:test_a_name_that_can_be_fetched_is_not_fetched_here"],
    43: ["test_fetch:test_other_than_published", "test_fetch:test_another_file_than_the_first_time",
         "test_fetch:test_a_shorter_file_that_says_so", "test_download:test_announces_more_than_it_sends",
         "test_download:test_goes_on_where_it_was", "test_weights:test_other_bytes_than_the_card_says"],
    44: ["test_archives:test_refused", "test_archives:test_symbolic_link_in_a_zip", "test_archives:test_in_a_tar",
         "test_archives:test_a_bomb", "test_archives:test_too_large_in_all", "test_fetch:test_a_refused_archive_touches_nothing"],
    45: ["test_config:test_a_wrong_config_is_told_what_came_and_what_was_wanted", "test_config:test_aliases_do_not_multiply",
         "test_config:test_a_giant_file_is_not_parsed"],
    46: ["test_records:test_no_cell_of_a_table_is_run_by_a_spreadsheet",
         "test_records:test_other_tables_are_escaped_and_submissions_refuse_such_ids"],
    47: ["test_run:test_attack_05_notebook_with_the_command_of_another_kernel",
         "test_run_refusals:test_notebooks_from_elsewhere_are_refused", "test_report:test_text_of_others_is_escaped",
         "test_attacks:test_attack_08_html_in_names"],
    48: ["test_run_refusals:test_a_notebook_without_exactly_the_parameters_is_refused",
         "test_run_refusals:test_bad_folders_and_configurations_are_told_at_once",
         "test_run:test_paths_with_braces_spaces_and_letters_of_any_kind", "test_cli:test_a_set_key_is_checked_like_the_file"],
    49: ["test_run_refusals:test_a_dead_kernel_is_a_failure_with_its_exit_code",
         "test_run_refusals:test_a_crash_in_compiled_code_tells_where", "test_run_refusals:test_a_cell_that_hangs_is_stopped",
         "test_run_processes:test_an_interrupt_ends_with_130_and_says_so"],
    50: ["test_run_processes:test_a_second_writer_is_refused_and_told_who_writes", "test_cli:test_a_second_writer",
         "test_predict:test_one_writer", "test_batch_resume:test_two_conversions_into_one_folder_are_one_too_many",
         "test_moved:test_a_lock_and_a_process_number_of_another_machine_hold_nobody_up"],
    51: ["test_batch_resume:test_a_folder_that_cannot_be_written_is_refused_at_once",
         "test_batch_resume:test_a_file_where_the_folder_should_be_is_refused",
         "test_cli:test_a_run_folder_that_cannot_be_written",
         "test_predict:test_places_that_cannot_be_written", "test_fetch:test_a_folder_that_cannot_be_written"],
    52: ["test_sources:test_links_are_not_followed_in_circles_nor_out_of_the_folder",
         "test_listing:test_what_a_link_points_to_must_lie_in_the_folder",
         "test_ome_zarr:test_an_ome_zarr_does_not_lead_out_of_itself",
         "test_cocosets:test_json_that_is_no_coco_is_left_alone_and_links_out_are_refused",
         "test_boxes:test_voc_parts_that_are_missing_or_hostile_are_named"],
    53: ["test_batch_resume:test_what_is_done_is_skipped_and_what_changed_is_made_again",
         "test_stale:test_everything_is_fresh_whatever_the_times",
         "test_stale:test_a_changed_input_from_outside_makes_the_reader_stale",
         "test_files:test_of_a_folder_depends_on_names_and_contents_alone"],
    54: ["test_loop:test_a_killed_worker_is_said"],
    55: ["test_registry:test_every_file_is_https_and_checked"],
    56: ["test_fetch:test_certificates_are_verified_as_before"],
    57: ["test_loop:test_the_same_for_any_number_of_workers", "test_batch:test_the_same_bytes_for_any_number_of_workers",
         "test_sources:test_any_number_of_workers_writes_the_same_bytes", "test_splits:test_a_name_decides_however_it_is_encoded",
         "test_training:test_what_a_person_draws_afterwards_follows_from_their_own_seed",
         "test_predict_images:test_the_same_for_any_number_of_workers"],
    58: ["test_sources:test_a_split_by_group_keeps_groups_whole", "test_splits:test_a_group_on_both_sides_is_refused",
         "test_listing:test_a_split_by_group_never_tears_a_group_apart",
         "test_cocosets:test_a_split_by_well_is_refused_where_the_published_one_tears_wells_apart"],
}  # fmt: skip

ROWS = [*range(1, 59)]


# ---- how a fault is met --------------------------------------------------------------------------------------------


@pytest.fixture
def set_aside(said, tmp_path):
    """Convert one good file beside a bad one; check that only the bad one is lost, said and counted; return the words."""

    def convert(bad: Path) -> str:
        tifffile.imwrite(bad.parent / "good.tif", GREY)
        command = ["convert", bad.parent, "-o", tmp_path / "out", "--nuclei", 0]
        code, out, err = said(*command)
        assert (code, out) == (3, f"{tmp_path / 'out'}: 1 picture\n")
        (line,) = [line for line in err.splitlines() if line.startswith("skipped: ")]
        assert bad.name in line and "Traceback" not in err
        assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["good.png"]
        assert not list((tmp_path / "out").glob(".tmp-*"))
        rows = table(tmp_path / "out" / "conversion.csv")
        assert {row["image_id"] for row in rows} == {"good"}
        assert said(*command, "--allow-skips")[0] == 0
        return line

    return convert


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture)


def png(width: int, height: int, rows: bytes) -> bytes:
    """Return a PNG of one bit per pixel."""
    chunk = lambda kind, body: struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))  # noqa: E731
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


# ---- every row has its test ----------------------------------------------------------------------------------------


def test_every_row_is_shown_by_a_test_that_exists():
    functions = {
        path.stem: set(re.findall(r"^ *def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE))
        for path in TESTS.rglob("test_*.py")
    }
    here = {int(name.split("_")[2]) for names in functions.values() for name in names if name.startswith("test_row_")}
    named = [tuple(place.split(":")) for places in ELSEWHERE.values() for place in places]
    assert [place for place in named if place[1] not in functions.get(place[0], ())] == []
    assert sorted(here | set(ELSEWHERE)) == ROWS


# ---- images --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_row_01_truncated_tiff(set_aside, tmp_path, compression):
    path = tmp_path / "in" / "bad.tif"
    path.parent.mkdir()
    tifffile.imwrite(path, GREY, compression=compression)
    path.write_bytes(path.read_bytes()[:2000])
    assert "the file is damaged or cut short" in set_aside(path)


@pytest.mark.parametrize("kept", [0.9, 0.3])
def test_row_02_truncated_png(set_aside, tmp_path, kept):
    path = save(tmp_path / "in" / "bad.png", (GREY % 256).astype(np.uint8))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    assert "cannot be read" in set_aside(path)


@pytest.mark.parametrize("content", [b"", b"these are notes, not an image"])
def test_row_03_empty_or_text(set_aside, tmp_path, content):
    path = tmp_path / "in" / "bad.tif"
    path.parent.mkdir()
    path.write_bytes(content)
    assert "empty (0 bytes)" in (line := set_aside(path)) or "cannot be read as TIFF" in line


def test_row_04_header_claims_a_giant(set_aside, tmp_path):
    path = tmp_path / "in" / "bad.tif"
    path.parent.mkdir()
    tifffile.imwrite(path, np.zeros((16, 16), np.uint8), metadata=None)
    with tifffile.TiffFile(path, mode="r+") as tif:
        for name in ("ImageWidth", "ImageLength", "RowsPerStrip"):
            tif.pages[0].tags[name].overwrite(65535)
    assert "claims 65535 x 65535 px, more than" in set_aside(path)


def test_row_05_png_bomb(set_aside, tmp_path):
    path = tmp_path / "in" / "bad.png"
    path.parent.mkdir()
    path.write_bytes(png(16_000, 12_500, bytes(2001) * 12_500))  # 2e8 px
    assert path.stat().st_size < 30_000
    assert "bad.png: Image size (200000000 pixels) exceeds limit" in set_aside(path)


@pytest.mark.parametrize("name", ["bad.png", "bad.tif"])
def test_row_05_pixel_budget_of_the_config(tmp_path, name):
    save(tmp_path / "in" / "good.png")
    tifffile.imwrite(tmp_path / "in" / "bad.tif", np.zeros((41, 50), np.uint8)) if name == "bad.tif" else save(
        tmp_path / "in" / name, np.zeros((41, 50), np.uint8)
    )
    made = convert_images(config(max_plane_px=2000), tmp_path / "in", tmp_path / "run")
    assert [record.image_id for record in made.images.records] == ["good"]
    (bad,) = made.quarantined
    assert bad.item == name and "claims 41 x 50 px, more than 2,000" in bad.reason
    assert len(convert_images(config(max_plane_px=2050), tmp_path / "in", tmp_path / "run").images.records) == 2


def test_row_06_memory_is_asked_for_before_a_giant_is_read(set_aside, said, tmp_path, monkeypatch):
    from cellkit import machine

    path = tmp_path / "in" / "bad.tif"
    path.parent.mkdir()
    tifffile.imwrite(path, shape=(16_000, 16_000), dtype=np.uint16)  # never written: no page of it is on the disk
    monkeypatch.setattr(machine, "memory", lambda: {"total_gb": 8.0, "free_gb": 2.0})
    assert "converting bad.tif takes about 2.6 GB of memory, 2.0 GB are free" in set_aside(path)
    side = 4000  # converted within half a gigabyte, more to find its cells
    save(tmp_path / "wide.png", np.zeros((side, side, 3), np.uint8))
    monkeypatch.setattr(machine, "memory", lambda: {"total_gb": 8.0, "free_gb": 0.7})
    code, _, err = said("predict", "threshold", tmp_path / "wide.png", "-o", tmp_path / "found.json")
    assert code == 2 and "finding the cells of wide.png takes about 0.8 GB of memory, 0.7 GB are free" in err
    assert not (tmp_path / "found.json").exists()


def test_row_06_memory_is_asked_for_at_the_scale_of_the_network(said, tmp_path, monkeypatch):
    """Cells of 4 px are enlarged to 30 px: the file is small, the work is not."""
    from cellkit import machine
    from cellkit.cells.dataset import CellDataset, predict_all
    from cellkit.cells.instances import Instances
    from cellkit.cells.records import ImageRecord
    from cellkit.config.sections import Config
    from cellkit.fetch.find import find_weights, with_weights
    from cellkit.models import cellpose_unet, get_backend, unet_maps

    record = ImageRecord("wide", "wide.png", 700, 700)
    save(tmp_path / "wide.png", np.zeros((700, 700, 3), np.uint8))
    monkeypatch.setattr(machine, "memory", lambda: {"total_gb": 8.0, "free_gb": 0.6})
    monkeypatch.setattr(unet_maps, "predict_maps", lambda *_: pytest.fail("begun"))
    told = "wide.png takes about 3.1 GB of memory, 0.6 GB are free"
    code, _, err = said("predict", "starter", tmp_path / "wide.png", "-o", tmp_path / "found.json", "--diameter", 4)
    assert code == 2 and f"finding the cells of {told}" in err
    images = CellDataset([record], [Instances.empty((700, 700))], ("a",), tmp_path, [1])
    segment = cellpose_unet.load(find_weights("starter"), cellpose_unet.Settings(diameter_px=4.0))
    with pytest.raises(UserError, match=f"finding the cells of {told}"):  # notebooks 02, 03 and 05
        predict_all(segment, images)
    labels = np.kron(np.arange(1, 30626).reshape(175, 175), np.pad(np.ones((3, 3), int), ((0, 1), (0, 1))))
    labelled = CellDataset([record], [Instances.from_labels(labels)], ("a",), tmp_path, [1])
    for section, name in (("finetune", "cellpose_unet"), ("maskrcnn", "maskrcnn_torchvision")):
        config = with_weights(getattr(Config(), section), SimpleNamespace(find=lambda key: "tuned")).model_copy(
            update={"min_area_px": 1}
        )
        with pytest.raises(UserError, match="training on 1 images at a diameter of 3.39 px takes about"):
            get_backend(name).train(labelled, labelled, config, tmp_path)


def test_row_06_small_images_ask_for_nothing(tmp_path, monkeypatch):
    from cellkit import machine

    monkeypatch.setattr(machine, "memory", lambda: pytest.fail("asked"))
    tifffile.imwrite(tmp_path / "a.tif", GREY)
    assert convert_file(tmp_path / "a.tif", Conversion({"nuclei": 0}))[0].image.shape == (40, 50, 3)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_row_07_sixteen_bits_are_scaled_and_the_scale_is_recorded(said, tmp_path, name):
    deep = np.linspace(0, 60_000, 2000).reshape(40, 50).astype(np.uint16)  # clipped to 8 bits nearly all would be white
    save(tmp_path / name, deep) if name == "a.png" else tifffile.imwrite(tmp_path / name, deep)
    given = ["--nuclei", 0, "--percentiles", 0, 100]
    assert said("convert", tmp_path / name, "-o", tmp_path / "out", *given)[0] == 0
    (row,) = table(tmp_path / "out" / "conversion.csv")
    assert (float(row["low"]), float(row["high"])) == (0, 60_000)
    assert row["scaled_by"] == "percentiles 0 and 100 of the image"
    blue = pixels_of(tmp_path / "out" / "a.png")[..., 2]
    np.testing.assert_array_equal(blue, np.rint(deep / 60_000 * 255))


def test_row_08_flat_images_are_finite_and_flagged(tmp_path):
    saturated = GREY.copy()
    saturated[:, :30] = 4095
    for name, pixels in (("zero", GREY * 0), ("constant", GREY * 0 + 700), ("saturated", saturated), ("good", GREY)):
        save(tmp_path / "in" / f"{name}.png", pixels)
    made = convert_images(config(), tmp_path / "in", tmp_path / "run")
    flags = {record.image_id: record.flags for record in made.images.records}
    assert all(flags[name] for name in ("zero", "constant", "saturated")), flags
    assert "saturated" in flags["saturated"] and not made.quarantined
    assert "nan" not in (tmp_path / "run" / "conversion.csv").read_text().lower()
    assert not any(pixels_of(tmp_path / "run" / f"images/{name}.png").any() for name in ("zero", "constant"))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_row_09_nan_or_infinite_pixels(set_aside, tmp_path, value):
    path = tmp_path / "in" / "bad.tif"
    path.parent.mkdir()
    pixels = GREY.astype(np.float32)
    pixels[3, 4] = value
    tifffile.imwrite(path, pixels)
    assert "holds 1 pixels that are NaN or infinite" in set_aside(path)


@pytest.mark.parametrize("axes", ["".join(order) for order in permutations("CYX")])
def test_row_12_every_order_of_axes(said, refused, tmp_path, axes):
    channels = RNG.integers(0, 255, (3, 40, 3), dtype=np.uint8)  # three channels, and three columns
    channels[:, 0, 0], channels[:, 1, 1] = 0, 255
    stored = np.ascontiguousarray(channels.transpose(["CYX".index(axis) for axis in axes]))
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="minisblack")
    command = ["convert", tmp_path / "a.tif", "-o", tmp_path / "out", "--nuclei", 2, "--percentiles", 0, 100]
    assert re.search(r"axes Q\w+ \(.*the meaning of .* is not known", refused(*command))
    assert said(*command, "--axes", axes)[0] == 0
    np.testing.assert_array_equal(pixels_of(tmp_path / "out" / "a.png")[..., 2], channels[2])
