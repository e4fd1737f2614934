"""The table of scores, its parts, and how sure a difference is."""

import io
import json

import numpy as np
import pytest
from hypothesis import given
from score_cases import a_record, a_set, one, overlapping_pairs, quick, spans, strip

from cellkit.cells.instances import Instances
from cellkit.errors import UserError
from cellkit.scores.conventions import compare_conventions
from cellkit.scores.iou import overlap_images
from cellkit.scores.kaggle import kaggle
from cellkit.scores.table import (
    TABLE_COLUMNS,
    paired_bootstrap,
    per_image,
    score_table,
    size_terciles,
    summary,
)

# ---- the table -----------------------------------------------------------------------------------------------------


def map_iou(table):
    return summary(table, n=0)["score"].item()


def test_table_agrees_with_kaggle_and_survives_csv():
    import pandas as pd

    truths, founds, records = a_set()
    table = score_table(truths, founds, records, classes=["HEK", "N2a"], sizes=True)
    assert list(table.columns) == list(TABLE_COLUMNS)
    assert len(table) == 3 * (1 + 2 + 3) * 10
    expected = kaggle(overlap_images(truths, founds))
    again = pd.read_csv(io.StringIO(table.to_csv(index=False)))
    for t in (table, again, table.sample(frac=1, random_state=0)):
        assert map_iou(t) == pytest.approx(expected["score"]) == pytest.approx((1 + 1 / 3 + 1) / 3)
    line = summary(table, n=200).iloc[0]
    assert (line["images"], line["empty_images"], line["truth_cells"], line["found_cells"]) == (3, 1, 3, 3)
    assert line["score_without_empty"] == pytest.approx(expected["score_without_empty"]) == pytest.approx(2 / 3)
    assert (line["low"], line["high"]) == pytest.approx(
        kaggle(overlap_images(truths, founds), bootstrap=200)["interval"]
    )
    assert line["low"] <= line["score"] <= line["high"]


def test_table_by_parts():
    table = score_table(*a_set(), classes=["HEK", "N2a"], sizes=True)
    by = {
        name: summary(table, name, n=0).set_index(name)["score"].to_dict()
        for name in ("cell_type", "group", "class_name")
    }
    assert by["cell_type"] == {"HEK": 1.0, "N2a": pytest.approx((1 / 3 + 1) / 2)}
    assert by["group"] == {"a": 1.0, "b": pytest.approx((1 / 3 + 1) / 2)}
    assert by["class_name"] == {"HEK": pytest.approx((1 + 0) / 2), "N2a": 1.0}  # image c has neither, it is left out
    sizes = summary(table, "size", n=0).set_index("size")
    assert list(sizes.index) == ["small", "medium", "large"]
    assert sizes["truth_cells"].sum() == 3
    assert sizes["found_cells"].sum() == 3
    assert sizes.loc["large", "score"] == 1


def test_cells_of_equal_areas_are_not_called_small():
    equal = [spans(40, (0, 5), (10, 15), (20, 25))]
    assert size_terciles(equal) is None and size_terciles([]) is None
    assert size_terciles([spans(40, (0, 5), (10, 16), (20, 27))]) == pytest.approx((5 + 2 / 3, 6 + 1 / 3))
    assert set(score_table(equal, equal, [a_record("a")], sizes=True)["size"]) == {""}
    with pytest.raises(UserError, match="the 3 true cells are all equally large"):
        compare_conventions(equal, equal, records=[a_record("a")], by="size")


def test_class_rows_forgive_a_prediction_on_unknown_truth():
    truth, found = spans(40, (0, 5), (10, 15), classes=[1, 0]), spans(40, (0, 5), (10, 15), (20, 22), classes=[1, 1, 1])
    table = score_table([truth], [found], [a_record("a")], classes=["HEK"])
    row = table[(table["class_name"] == "HEK") & (table["threshold"] == 0.5)].iloc[0]
    assert (row["tp"], row["fp"], row["fn"]) == (1, 1, 0)


@quick
@given(overlapping_pairs())
def test_sizes_sum_to_the_whole(sides):
    table = score_table([sides[0]], [sides[1]], [a_record("a")], sizes=True)
    whole, parts = table[table["size"] == ""], table[table["size"] != ""]
    if len(parts):
        summed = parts.groupby("threshold")[["tp", "fp", "fn"]].sum().to_numpy()
        np.testing.assert_array_equal(whole[["tp", "fp", "fn"]].to_numpy(), summed)


def test_per_image_names_every_image_in_order():
    lines = per_image(score_table(*a_set()))
    assert lines["image_id"].tolist() == ["a", "b", "c"]
    assert lines["score"].tolist() == pytest.approx([1, 1 / 3, 1])
    assert lines[["truth_cells", "found_cells", "tp", "fp", "fn"]].to_numpy().tolist() == [
        [1, 1, 1, 0, 0],
        [2, 2, 1, 1, 1],
        [0, 0, 0, 0, 0],
    ]


def test_table_refuses_what_does_not_fit():
    truths, founds, records = a_set()
    with pytest.raises(UserError, match="2 records, 3 truths"):
        score_table(truths, founds, records[:2])
    table = score_table(truths, founds, records)
    with pytest.raises(UserError, match="lacks size"):
        map_iou(table.drop(columns="size"))
    with pytest.raises(UserError, match=r"did you mean 'cell_type'"):
        summary(table, by="celltype")
    with pytest.raises(UserError, match="29 rows for 3 images"):
        map_iou(table.iloc[1:])


def test_no_image_at_all():
    table = score_table([], [], [])
    assert np.isnan(map_iou(table))
    assert kaggle([])["score"] is None
    assert len(per_image(table)) == 0
    assert json.dumps(compare_conventions([], []), allow_nan=False)


# ---- bootstrap -----------------------------------------------------------------------------------------------------


def many_images(seed, quality, n=40):
    rng = np.random.default_rng(seed)
    truth = spans(100, *[(10 * k, 10 * k + 10) for k in range(10)])
    founds = [truth[rng.random(10) < quality] for _ in range(n)]
    return score_table([truth] * n, founds, [a_record(f"i{k:02d}", group="") for k in range(n)])


def test_paired_bootstrap_tells_better_from_equal():
    a, b = many_images(0, 0.7), many_images(1, 0.9)
    better = paired_bootstrap(a, b)
    assert better.difference == pytest.approx(map_iou(b) - map_iou(a))
    assert 0 < better.low < better.difference < better.high
    assert better.n == 40
    assert better.sentence("base", "tuned").startswith("tuned is better than base by 0.")
    worse = paired_bootstrap(b, a)
    assert worse.difference == pytest.approx(-better.difference)
    assert worse.sentence().startswith("B is worse than A by 0.")
    same = paired_bootstrap(a, a.sample(frac=1, random_state=0))
    assert same[:3] == (0, 0, 0)
    assert "cannot be told apart" in same.sentence()
    assert paired_bootstrap(a, b) == better  # deterministic


def test_paired_bootstrap_needs_the_same_images():
    a = many_images(0, 0.7)
    with pytest.raises(UserError, match=r"1 image is in one table only, e.g. 'i39'"):
        paired_bootstrap(a, a[a["image_id"] != "i39"])


def test_interval_covers_the_true_score():
    # an image is right or wrong with probability 1/2: the interval covers .5 about 95 times in 100
    truth = spans(10, (0, 5))
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(100):
        founds = [truth if rng.random() < 0.5 else Instances.empty((1, 10)) for _ in range(60)]
        low, high = kaggle(overlap_images([truth] * 60, founds), bootstrap=300, seed=seed)["interval"]
        covered += low <= 0.5 <= high
    assert 88 <= covered <= 99


def test_one_image_has_no_interval():
    assert kaggle(one(strip(1), strip(1)))["interval"] == [None, None]
