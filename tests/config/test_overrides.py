"""Overrides as a notebook gives them."""

import pytest

from cellkit.config.reading import load_config, set_strings
from cellkit.errors import UserError


@pytest.mark.parametrize(
    ("overrides", "example"),
    [
        ("coco.min_area_px=5", "{'coco.min_area_px': 5}"),
        (["finetune.steps=1", "label.use=proposed"], "{'finetune.steps': 1, 'label.use': 'proposed'}"),
        ("coco.min_area_px", "{'finetune.steps': 100}"),
        ("classes=[", "{'finetune.steps': 100}"),
        ([1], "{'finetune.steps': 100}"),
        (7, "{'finetune.steps': 100}"),
    ],
)
def test_overrides_that_are_no_table_are_shown_as_one(tmp_path, overrides, example):
    (tmp_path / "a.yaml").write_text("seed: 1\n")
    with pytest.raises(UserError) as refused:
        load_config(tmp_path / "a.yaml", overrides)
    problem, remedy = str(refused.value).splitlines()
    assert problem == f"overrides is {overrides!r}, no table of keys and values"
    assert remedy == f"write it as overrides = {example}"


@pytest.mark.parametrize("second", ["finetune.steps=1", "finetune={steps: 2}", "finetune.steps={a: 1}"])
def test_what_is_set_twice_is_refused_also_as_a_table(second):
    with pytest.raises(UserError, match="finetune.steps[.a]* is given twice"):
        set_strings(["finetune.steps=1", "finetune.step=2", second])
    assert set_strings(["finetune.steps=1", "finetune.step=2", "finetune={learning_rate: 0.1}"])
