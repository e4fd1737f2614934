"""Rules that choose images: what each takes first, whatever the order they are given in, and the turns of types and groups."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.errors import UserError
from cellkit.labelling.planner import DEFAULT_RULE, features_of, in_random_order, plan_table, ranked, spread, to_rank
from cellkit.labelling.rules import RULES, Features, random_number, rule_of
from cellkit.models import get_backend

STYLES = np.array([[0.0, 0], [0.1, 0], [0, 0.1], [5, 0], [5.2, 0], [0, 9]])
SIX = Features(
    names=list("abcdef"),
    cells=np.array([5.0, 2, 9, 9, 0, 7]),
    confidence=np.array([0.9, 0.8, 0.7, 0.9, np.nan, 0.9]),
    disagreements={"flips": np.array([0.1, 0.6, 0.2, 0.2, 0, 0.6]), "thresholds": np.array([0.1, 0.2, 0.2, 0.6, 0, 0])},
    style=STYLES,
)


def named(rule: str, features: Features = SIX, count: int = 3) -> str:
    return "".join(features.names[k] for k in RULES[rule].order(features, count))


def test_each_rule_takes_what_it_says():
    assert named("densest") == "cdfabe", "of equal ones the first name"
    assert named("disagreement") == "bdfcae", "the mean of what was compared; d .4, b .4, f .3"
    assert named("farthest_first")[:3] == "bfe", "the most typical one, then what is unlike it"
    assert {n for n in named("dense_and_far")[:3]} == {"c", "d", "f"}, "the denser half first"
    assert set(named("random_denser_half")[:3]) == {"c", "d", "f"}
    assert named("kmeans_centres")[:3] == "adf", "the middle of the largest cluster first"
    assert named("disagreement_x_coverage")[0] == "b", "nothing is labelled yet: most disagreement"
    assert named("disagreement_x_coverage")[1] == "f", "far from it, and in doubt"
    assert named("doubt")[0] == "b" and named("doubt")[-1] == "a"


def test_what_is_labelled_is_not_looked_for_again():
    known = replace(SIX, labelled=STYLES[[5]])
    assert named("farthest_first", known)[0] == "e" and named("farthest_first", known)[-1] == "f"
    assert "f" not in named("kmeans_centres", known, 2)[:2]
    np.testing.assert_allclose(known.distance(), np.linalg.norm(STYLES - STYLES[5], axis=1))
    assert np.isinf(SIX.distance()).all() and SIX.distance([0])[0] == 0


@given(st.permutations(range(6)), st.sampled_from(sorted(RULES)), st.integers(1, 6), st.integers(0, 3))
def test_any_order_of_the_images_gives_the_same_names(order, rule, count, seed):
    mixed = Features(
        [SIX.names[k] for k in order],
        SIX.cells[order],
        SIX.confidence[order],
        {name: values[order] for name, values in SIX.disagreements.items()},
        STYLES[order],
        seed=seed,
    )
    assert named(rule, mixed, count) == named(rule, replace(SIX, seed=seed), count)
    assert sorted(RULES[rule].order(mixed, count)) == list(range(6)), "each image once"


@pytest.mark.parametrize("rule", sorted(RULES))
def test_images_that_cannot_be_told_apart_and_none_at_all(rule):
    same = Features(list("ab"), np.ones(2), np.ones(2), {"flips": np.zeros(2)}, np.zeros((2, 4)))
    assert sorted(RULES[rule].order(same, 5)) == [0, 1]
    nothing = Features([], np.zeros(0), np.zeros(0), {"flips": np.zeros(0)}, np.zeros((0, 4)))
    assert RULES[rule].order(nothing, 3) == []


def test_lots_are_even_and_an_image_more_moves_no_other():
    numbers = [random_number(f"image {k}") for k in range(2000)]
    assert abs(np.mean(numbers) - 0.5) < 0.02 and min(numbers) >= 0 and max(numbers) < 1
    assert named("random") == named("random", replace(SIX, cells=-SIX.cells)), "numbers see no cell"


def records(types: str, groups: str = "") -> list[ImageRecord]:
    groups = groups or " " * len(types)
    pairs = zip(types, groups, strict=True)
    return [
        ImageRecord(f"{k:02d}", "", 8, 8, cell_type=t, group=g.strip(), split="train") for k, (t, g) in enumerate(pairs)
    ]


def test_types_and_groups_take_turns():
    assert spread(range(4), records("AAAB")) == [0, 3, 1, 2]
    assert spread(range(6), records("AAAAAA", "111223")) == [0, 3, 5, 1, 4, 2]
    assert spread(range(3), records("AAA", "112"), records("A", "1")) == [2, 0, 1], "well 1 is labelled"
    assert spread([2, 0, 1], records("   ")) == [2, 0, 1], "no types, no groups: the order stays"


@given(st.text("AB", min_size=1, max_size=12), st.data())
def test_no_type_waits_longer_than_it_must(types, data):
    groups = data.draw(st.text("12 ", min_size=len(types), max_size=len(types)))
    images = records(types, groups)
    order = data.draw(st.permutations(range(len(types))))
    got = spread(order, images)
    assert sorted(got) == sorted(order)
    for end in range(len(got) + 1):
        turns = {t: sum(images[k].cell_type == t for k in got[:end]) for t in set(types)}
        for t in turns:
            if any(images[k].cell_type == t for k in got[end:]):
                assert turns[t] >= max(turns.values()) - 1
    for t in set(types):  # within a type and a group the order stays
        for g in set(groups):
            mine = [k for k in got if images[k].cell_type == t and images[k].group == g.strip() != ""]
            assert mine == [k for k in order if k in mine]


def test_flagged_labelled_and_held_out_images_are_not_ranked():
    images = records("AAAAA")
    images = [replace(r, split=s) for r, s in zip(images, ("train", "train", "val", "test", "train"), strict=True)]
    images[4] = replace(images[4], flags="saturated")
    data = CellDataset(images, [Instances.empty((8, 8))] * 5)
    train, held_out = to_rank(data, {"00"})
    assert [r.image_id for r in train.records] == ["01"]
    assert [r.image_id for r in held_out.records] == ["02", "03"]
    assert {r.image_id for r in in_random_order(held_out)} == {"02", "03"}


def test_an_unknown_rule_is_refused_and_the_default_is_one_of_them():
    with pytest.raises(UserError, match="did you mean 'densest'"):
        rule_of("denset")
    assert DEFAULT_RULE in RULES
    assert ranked(records("AAAAAA"), SIX) == RULES[DEFAULT_RULE].order(SIX, 10)


def test_a_table_says_why_and_what_it_takes():
    images = CellDataset(records("AAAABB"), [Instances.empty((8, 8))] * 6)
    table = plan_table(images, replace(SIX, names=[r.image_id for r in images.records]), seconds_per_cell=10)
    assert table["rank"].tolist() == [1, 2, 3, 4, 5, 6] and table["image_id"].tolist()[:2] == ["02", "05"]
    assert table["why"].iloc[0] == "most cells, next of A; 9 cells expected"
    np.testing.assert_allclose(table["minutes"].iloc[0], 2.5)
    assert np.isnan(table["distance"]).all() and table["disagreement_flips"].iloc[0] == 0.2


class TestMeasured:
    """Features of drawn images, with real models."""

    def test_a_style_is_of_the_image_and_not_of_its_place(self, drawn):
        from cellkit.fetch.find import find_weights

        unet, weights = get_backend("cellpose_unet"), find_weights("starter")
        settings = unet.Settings(diameter_px=30)
        some = drawn.subset([0, 1])
        two = unet.style(weights, some.images(), settings)
        assert two.shape == (2, 256) and two.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(two, axis=1), 1, atol=1e-5)
        mirrored = np.ascontiguousarray(drawn.image(0)[::-1])
        again = unet.style(weights, [mirrored, drawn.image(0)], settings)
        np.testing.assert_allclose(again[1], two[0], atol=1e-5)
        near, far = (np.linalg.norm(two[0] - one) for one in (again[0], two[1]))
        assert near < far, "turned over it looks more alike than another image"

    def test_a_stricter_threshold_passes_fewer_pixels_and_changes_nothing_else(self):
        unet = get_backend("cellpose_unet")
        settings = unet.Settings(diameter_px=30, channels="nuclei")
        stricter = unet.stricter(settings, {"cellprob_threshold": -0.5})
        assert stricter.cellprob_threshold == 0.5
        assert stricter.model_copy(update={"cellprob_threshold": None}) == settings
        assert unet.stricter(settings, {"cellprob_threshold": 12.0}).cellprob_threshold == 12

    def test_a_threshold_does_not_disagree_with_itself_in_a_mirror(self, drawn):
        floor = get_backend("threshold")
        some = drawn.subset([0, 1])
        found = list(floor.load(None)(some.images()))
        features = features_of(some, found, (floor, None, floor.Settings()), ["disagreement"])
        assert set(features.disagreements) == {"flips"} and (features.disagreement < 0.2).all()
        np.testing.assert_array_equal(features.cells, [len(cells) for cells in found])
        with pytest.raises(UserError, match="Threshold has none"):
            features_of(some, found, (floor, None, floor.Settings()), ["style"])
