"""The data dictionary: every column of the table, and the page of the manual that tells them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.errors import UserError
from cellkit.measure.channels import column_names
from cellkit.measure.dictionary import PARTS, columns_of, to_markdown
from cellkit.measure.images import Job, rows_of
from cellkit.measure.table import measure

PAGE = Path(__file__).parents[2] / "docs" / "measurements.md"


def test_the_dictionary_names_the_columns_of_the_table_in_their_order():
    cells = Instances.from_labels(np.eye(4, dtype=int))
    job = Job(ImageRecord("a", "a.tif", 4, 4), cells)
    image = {"DAPI": np.eye(4), "=GFP": np.eye(4)}
    assert rows_of(job, image).columns.tolist() == columns_of(["DAPI", "=GFP"])
    both = Job(ImageRecord("a", "a.tif", 4, 4), cells, nuclei=cells)
    assert rows_of(both, image).columns.tolist() == columns_of(["DAPI", "=GFP"], nuclei=True)
    assert rows_of(job).columns.tolist() == columns_of()


def test_the_manual_has_the_dictionary():
    text = PAGE.read_text(encoding="utf-8")
    assert text.split("<!-- dictionary:begin -->\n")[1].split("\n<!-- dictionary:end -->")[0] == to_markdown()


def test_units_are_in_the_names_or_in_the_dictionary():
    columns = [column for _, part in PARTS for column in part]
    assert len({column.name for column in columns}) == len(columns)
    for column in columns:
        for end, unit in (("_px", "px"), ("_um", "um"), ("_um2", "um^2"), ("_deg", "degrees")):
            assert not column.name.endswith(end) or column.unit in (unit, "um")
        assert column.meaning and "|" not in column.meaning + column.elsewhere


def test_channels_of_one_name_and_of_none_have_columns_of_their_own():
    names = column_names(["DAPI", "", " ", "a\nb", "DAPI"])
    assert len(set(names)) == 5 and not any("\n" in name for name in names)


@pytest.mark.parametrize("names", [["GFP_1", "GFP", "GFP"], ["channel_1", ""], ["", "channel_0", "channel_0"]])
def test_a_number_put_after_a_name_gives_no_name_that_another_channel_has(names):
    assert len(set(column_names(names))) == len(names)


def test_no_two_channels_share_a_column():
    columns = columns_of(column_names(["GFP", "corrected_GFP", "DAPI"]), nuclei=True)
    assert len(set(columns)) == len(columns)
    with pytest.raises(UserError, match="two channels have a column integrated_corrected_GFP"):
        measure(Instances.from_labels(np.eye(2, dtype=int)), {name: np.eye(2) for name in ("GFP", "corrected_GFP")})
