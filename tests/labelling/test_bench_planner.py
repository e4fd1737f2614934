"""The comparison of the rules: what it makes of tables whose answer is known, and that no training is repeated."""

from __future__ import annotations

import bench_planner as bench
import numpy as np
import planner_tables as tables
import pytest
import real_sets

from cellkit.cells.records import ImageRecord
from cellkit.labelling.rules import Features
from cellkit.models import unet_network, weights

ABOUT = tables.Key("drawn", "", 0, 60, "base", "s")
N = 40


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Few resampled pools: an interval is wider then, and no other."""
    monkeypatch.setattr(tables, "POOLS", 20)
    monkeypatch.setattr(tables, "DRAWS_OF_POOL", 4)


@pytest.fixture
def pool() -> tables.Pool:
    rng = np.random.default_rng(0)
    names = [f"i{k:02d}" for k in range(N)]
    disagreements = {"flips": rng.random(N), "thresholds": rng.random(N)}
    features = Features(names, rng.integers(1, 200, N).astype(float), rng.random(N), disagreements, rng.random((N, 3)))
    return tables.Pool([ImageRecord(name, "", 8, 8, split="train") for name in names], features)


def trained(pool: tables.Pool, score, seeds: int = 1) -> dict:
    rng = np.random.default_rng(1)
    table = {}
    for name, cells in zip(pool.features.names, pool.features.cells, strict=True):
        for seed in range(seeds):
            value = float(np.clip(score(cells) + 0.02 * rng.standard_normal(), 0, 1))
            table[tables.key_of(ABOUT, [name], seed)] = {
                "cells": cells,
                "map_iou": value,
                "ap50": min(1.0, 1.3 * value),
            }
    return table


def compared(
    pool, table, draws: int = 30, rules=("random", "random_denser_half", "densest", "disagreement", "farthest_first")
):
    found = tables.results(pool, table, ABOUT, rules, [1], draws, 12, [0])
    singles = [(row["cells"], row["map_iou"]) for row in table.values()]
    scores = {key.images: row["map_iou"] for key, row in table.items()}
    intervals = {rule: tables.pool_interval(pool, scores, rule, 12) for rule in rules}
    return {row["rule"]: row for row in tables.compare(found, "map_iou", 1, singles, intervals)}, found


def test_where_cells_are_all_that_counts_densest_wins_and_not_at_equal_cells(pool):
    rows, found = compared(pool, trained(pool, lambda cells: 0.1 * np.log1p(cells)))
    assert next(iter(rows)) == "densest" and rows["densest"]["gain"] > 0.06 and rows["densest"]["p"] < 0.01
    assert rows["densest"]["interval"][0] > 0.05
    assert abs(rows["densest"]["gain at equal cells"]) < 0.02, "its whole gain is the cells that were paid for"
    assert rows["densest"]["regret"] < 0.02 < rows["random"]["regret"]
    assert rows["random_denser_half"]["interval"][0] > 0 > rows["random_denser_half"]["gain"] - rows["densest"]["gain"]
    text = tables.markdown([*rows.values()], "map_iou", 1, "drawn")
    assert all(f"| {rule} |" in text for rule in rows), "the losing rows too"
    assert len(found) == 30 * 5


def test_where_all_images_teach_alike_nothing_wins(pool):
    rows, _ = compared(pool, trained(pool, lambda cells: 0.6))
    assert all(row["interval"][0] <= 0 <= row["interval"][1] for row in rows.values())
    assert all(abs(row["gain"]) < 0.02 for row in rows.values())


def test_chance_is_told_exactly_at_a_budget_of_one(pool):
    table = trained(pool, lambda cells: 0.3 + cells / 400)
    found = tables.results(pool, table, ABOUT, ["random", "random_denser_half", "densest"], [1], 1, 5, [0])
    places = pool.candidates(0, 5)
    score = {k: table[tables.key_of(ABOUT, [pool.features.names[k]], 0)]["map_iou"] for k in places}
    of = {one.rule: one for one in found}
    np.testing.assert_allclose(of["random"].map_iou, np.mean([*score.values()]))
    half = sorted(places, key=lambda k: -pool.features.cells[k])[:3]
    np.testing.assert_allclose(of["random_denser_half"].map_iou, np.mean([score[k] for k in half]))
    assert of["densest"].map_iou == score[half[0]] and of["densest"].best == max(score.values())


def test_a_draw_counts_when_all_its_rules_are_trained(pool):
    table = trained(pool, lambda cells: 0.5)
    rules = ["random", "densest"]
    assert {one.draw for one in tables.results(pool, table, ABOUT, rules, [1, 2], 4, 6, [0])} == {0, 1, 2, 3}
    assert {one.budget for one in tables.results(pool, table, ABOUT, rules, [1, 2], 4, 6, [0])} == {1}
    for rule in rules:
        two = pool.chosen(rule, pool.candidates(2, 6), 2, 2)
        table[tables.key_of(ABOUT, two, 0)] = {"cells": 9.0, "map_iou": 0.7, "ap50": 0.8}
    found = tables.results(pool, table, ABOUT, rules, [1, 2], 4, 6, [0])
    assert {one.draw for one in found if one.budget == 2} == {2}
    rows = {row["rule"]: row for row in tables.areas(found, "map_iou")}
    assert len(rows["densest"]["images"]) == 1 and 0.5 < rows["densest"]["images"][0] < 0.7
    assert tables.results(pool, table, ABOUT, rules, [1], 4, 6, [0, 1]) == [], "a second seed is not there"


def test_holm_areas_and_signs():
    np.testing.assert_allclose(tables.holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    assert tables.area([0, 1, 3], [0, 1, 1]) == pytest.approx(2.5 / 3, abs=0.01)
    assert tables.area([0, 2], [0, 2], (0, 1)) == pytest.approx(0.5) and np.isnan(tables.area([1], [1]))
    assert tables.sign_flip([0.1] * 12) < 0.01 < 0.3 < tables.sign_flip([0.1, -0.1] * 6)
    assert tables.sign_flip([]) == tables.sign_flip([0.0, 0.0]) == 1


def test_a_row_that_a_kill_cut_off_is_trained_again(tmp_path):
    path, key = tmp_path / "trained.csv", tables.key_of(ABOUT, ["b", "a"], 3)
    assert key.images == "a b" and tables.read_trained(path) == {}
    values = {"cells": 12.0, "map_iou": 0.25, "ap50": 0.5}
    tables.add_trained(path, key, values, 61.4)
    with open(path, "a") as file:
        file.write("drawn,c,0,60,base,s,12,0.4")
    assert tables.read_trained(path) == {key: values}
    other = tables.key_of(ABOUT, ["c"], 0)
    tables.add_trained(path, other, values, 5)
    assert tables.read_trained(path) == {key: values, other: values}


def test_from_a_set_to_a_table_with_a_kill_on_the_way(drawn, tmp_path, monkeypatch, capsys):
    adapted = []

    def adapt(train, test, finetune, seed):
        assert {r.image_id for r in train.records}.isdisjoint(r.image_id for r in test.records)
        assert finetune.steps == 7 and finetune.crop_px == 64
        if len(adapted) == 2 and "killed" not in adapted:
            adapted.append("killed")
            raise KeyboardInterrupt
        adapted.append(tuple(r.image_id for r in train.records))
        return {"cells": float(train.cells), "map_iou": 0.1 * len(train), "ap50": 0.2 * len(train)}

    base = weights.save_checkpoint(
        tmp_path / "light.safetensors",
        unet_network.CellposeUNet(widths=(4, 4, 4, 4)).state_dict(),
        "cellpose_unet",
        config={"widths": [4, 4, 4, 4], "diameter_px": 30.0},
    )
    monkeypatch.setattr(real_sets, "load_set", lambda *_: (drawn, "never seen"))
    monkeypatch.setattr(real_sets, "HELD_OUT", 0.4)
    monkeypatch.setattr(bench, "adapt", adapt)
    flags = ["--set", "two_lines", "--data", tmp_path, "--work", tmp_path / "work", "--steps", "7", "--crop", "64"]
    flags += ["--budget", "1", "2", "--draws", "2", "--candidates", "3", "--out", tmp_path / "table.md"]
    flags += ["--rules", "densest", "farthest_first", "--base", base]
    (tmp_path / "two_lines").mkdir()
    monkeypatch.setattr("sys.argv", ["bench_planner.py", *map(str, flags)])
    with pytest.raises(KeyboardInterrupt):
        bench.main()
    bench.main()
    trainings = [one for one in adapted if one != "killed"]
    assert len(trainings) == len(set(trainings)) == len(tables.read_trained(tmp_path / "work/trained.csv"))
    assert {1, 2} == {len(one) for one in trainings}
    text = (tmp_path / "table.md").read_text()
    assert "2 draws" in text and "| densest | 0.200 |" in text and "area under the curve" in text
    bench.main()
    assert len([one for one in adapted if one != "killed"]) == len(trainings), "nothing is trained twice"
    assert "of them done before" in capsys.readouterr().out


def test_without_a_set_nothing_is_begun(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["bench_planner.py"])
    bench.main()
    assert "name a set" in capsys.readouterr().out
