"""Folds of a source: who is held back, and what stays together."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellkit.config.sections import ChannelsConfig, ConvertConfig
from cellkit.errors import UserError
from cellkit.log import collected_warnings
from cellkit.sources.assign_folds import hold_out_fold
from cellkit.sources.listing import SourceImage


def config(**options) -> ConvertConfig:
    return ConvertConfig(source="folder", channels=ChannelsConfig(nuclei=0), **options)


def item(name: str, split: str = "train", line: str = "A", group: str = "", unit: str = "") -> SourceImage:
    return SourceImage(name, line, group, split, f"{name}.png", None, unit=unit)


def held(items, **options) -> set[str]:
    return {one.image_id for one in hold_out_fold(items, config(**options)) if one.split == "val"}


@given(st.integers(2, 5), st.lists(st.integers(1, 4), min_size=5, max_size=9), st.integers(0, 3), st.randoms())
def test_every_image_is_held_back_once_and_no_group_is_divided(folds, sizes, seed, rng):
    items = [item(f"{well}_{k}", "train" if k else "val", "AB"[well % 2], f"well {well}")
             for well, size in enumerate(sizes) for k in range(size)]  # fmt: skip
    items += [item("t", "test", group="well 90"), item("u", "unused"), item("n", "")]
    parts = []
    for fold in range(1, folds + 1):
        how = {"folds": folds, "fold": fold, "split_by": "group", "seed": seed}
        made = hold_out_fold(items, config(**how))
        assert [one.image_id for one in made] == [one.image_id for one in items]
        assert [one.split for one in made[-3:]] == ["test", "unused", ""]
        splits = {name: {one.group for one in made if one.split == name} for name in ("train", "val")}
        assert not splits["train"] & splits["val"]
        mixed = random.Random(rng.random()).sample(items, len(items))
        assert held(mixed, **how) == held(items, **how), "the order of the files decides nothing"
        parts.append(held(items, **how))
    names = [name for part in parts for name in part]
    assert sorted(names) == sorted(one.image_id for one in items[:-3])


def test_every_line_is_in_every_fold():
    items = [item(f"{line}{k}", line=line) for line in "ABC" for k in range(6)]
    for fold in (1, 2, 3):
        assert sorted(name[0] for name in held(items, folds=3, fold=fold)) == list("AABBCC")


def test_frames_of_one_file_stay_together_whatever_is_split_by():
    items = [item(f"f{file}_{k}", unit=f"f{file}") for file in range(4) for k in range(3)]
    for fold in (1, 2):
        assert {len({n[:2] for n in held(items, folds=2, fold=fold)})} == {2}


def test_unlabelled_images_among_labelled_do_not_change_how_these_are_dealt():
    labelled = [item(f"{line}{k}", line=line) for line in "AB" for k in range(4)]
    labelled += [item(f"w{k}", line="A", unit="series") for k in range(2)]
    bare = [replace(item(f"u{k:02}", line="A"), bare=True) for k in range(30)]
    bare += [replace(item("w9", line="A", unit="series"), bare=True)]
    how = {"folds": 3, "unlabelled": "keep"}
    dealt = {fold: held(labelled + bare, **how, fold=fold) for fold in (1, 2, 3)}
    for fold, found in dealt.items():
        assert {n for n in found if n[0] in "ABw" and n != "w9"} == held(labelled, **how, fold=fold)
        assert ("w9" in found) == ("w0" in found), "frames of one series stay together"
        assert 3 <= sum(name.startswith("u") for name in found) <= 20
    assert sorted(name for found in dealt.values() for name in found) == sorted(i.image_id for i in labelled + bare)
    with pytest.raises(UserError, match="5 folds of 4 images"):
        held(labelled[:4] + bare, folds=5, fold=1, unlabelled="keep")


def test_groups_that_are_divided_are_told():
    items = [item(f"{k}", group="plate") for k in range(6)]
    with collected_warnings() as lines:
        hold_out_fold(items, config(folds=3))
    assert "1 group of images in several folds, e.g. plate" in lines[0]
    assert hold_out_fold(items, config()) == items, "without folds nothing changes"


def test_fewer_groups_than_folds_are_refused():
    items = [item(f"{k}", group="AB"[k % 2]) for k in range(8)]
    with pytest.raises(UserError, match="5 folds of 2 groups for training and validation\nask for 2 folds or fewer"):
        hold_out_fold(items, config(folds=5, split_by="group"))
    with pytest.raises(UserError, match="9 folds of 8 images, files or series"):
        hold_out_fold(items, config(folds=9))
    with pytest.raises(ValueError, match="fold 4 of folds: 3"):
        config(folds=3, fold=4)
