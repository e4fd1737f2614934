"""The gate of notebook 03: what is kept, and what is refused before a training."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from cellkit.errors import UserError
from cellkit.evaluate.evaluation import check_ceiling
from cellkit.evaluate.verdict import NO_BASE, keep_if_better


def test_kept_is_what_is_better_beyond_doubt_and_the_draws_say_why(drawn):
    less = [cells[len(cells) // 2 :] for cells in drawn.instances]
    better = keep_if_better(drawn, {"base": less, "tuned": drawn.instances})
    assert (better.kept, better.text) == ("tuned", "kept: tuned") and better.sentence == better.gain.sentence(
        "base", "tuned"
    )
    assert better.draws.min() > 0 and better.draws.mean() == pytest.approx(better.gain.difference, abs=0.01)
    same = keep_if_better(drawn, {"base": less, "tuned": less})
    assert same.kept == "base" and not same.gain.better and not same.draws.any()
    alone = keep_if_better(drawn, {"tuned": less})
    assert (alone.kept, alone.sentence, alone.gain, len(alone.draws)) == ("tuned", NO_BASE, None, 0)
    nobody = keep_if_better(replace(drawn, made_by=["proposed"] * len(drawn)), {"base": less, "tuned": drawn.instances})
    assert nobody.kept == "base" and len(nobody.draws) == 0


def test_a_ceiling_is_said_or_refused(drawn):
    assert check_ceiling(SimpleNamespace(), drawn, None) == "it has no targets to lose cells"
    backend = SimpleNamespace(ceiling=lambda train, config: config)
    assert check_ceiling(backend, drawn, 0.9876) == "decode(encode(labels)) scores 0.988 against the labels"
    for low in (0.8, float("nan")):
        with pytest.raises(UserError, match="the targets lose cells: .*, not 0.8\ncheck finetune.diameter_px"):
            check_ceiling(backend, drawn, low)
