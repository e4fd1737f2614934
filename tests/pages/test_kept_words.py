"""What the report says of the decision of notebook 03."""

from __future__ import annotations

import pytest

from cellkit.files import write_json
from cellkit.pages.results import RunFiles
from cellkit.pages.scores import kept_words


@pytest.mark.parametrize(("untaught", "said"), [({}, False), ({"nih3t3": 21, "hek": 1}, True)])
def test_lines_that_nobody_labelled_are_named_beside_the_decision(untaught, said, tmp_path):
    told = {"kept": "cellpose_tuned", "verdict": "tuned", "sentence": "better by 0.05", "untaught": untaught}
    write_json(tmp_path / "decision.json", told)
    words = kept_words(RunFiles(tmp_path))
    assert words.startswith("Better by 0.05 (judged on what neither taught nor chose it): the tuned model is kept.")
    assert ("No labelled image of nih3t3 (21 images), hek (1 image) teaches: the tuned model may" in words) == said
