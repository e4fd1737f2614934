"""A model for each kind of image."""

import numpy as np
import pytest

from cellkit.cells.instances import Instances
from cellkit.cells.leftout import LeftOut
from cellkit.errors import UserError
from cellkit.models.shared.contract import Segmenter
from cellkit.models.shared.routing import class_vote, most_frequent, routed, style_vote, with_classes_of

CLASSES = ("HEK", "N2a", "astro")


def cells(*classes: int, scores=None) -> Instances:
    return Instances.from_labels(np.arange(1, len(classes) + 1)[None], class_ids=classes, scores=scores)


def of(found: Instances) -> Segmenter:
    def find(image, left_out):
        left_out["small"] += 1
        return found

    return Segmenter(find, {"least": 1}, lambda shape: shape[0])


def by_brightness(image: np.ndarray) -> str:
    return {0: "", 1: "HEK", 2: "N2a", 3: "rat"}[int(image.max())]


def picture(value: int) -> np.ndarray:
    return np.full((4, 4, 3), value, np.uint8)


def test_the_class_with_most_cells_wins_then_their_scores_then_the_order():
    assert most_frequent(cells(1, 2, 2, 0, 0, 0), CLASSES) == "N2a"
    assert most_frequent(cells(1, 2, scores=[0.4, 0.6]), CLASSES) == "N2a"
    assert most_frequent(cells(3, 2), CLASSES) == "N2a"
    assert most_frequent(cells(0), CLASSES) == ""
    router = of(cells(3, 3, 1))
    assert class_vote(router, CLASSES)(picture(0)) == "astro" and not router.left_out


def test_each_image_goes_to_the_model_of_its_kind():
    segment = routed(by_brightness, {"HEK": of(cells(1)), "N2a": of(cells(2, 2))}, "N2a")
    left, found = LeftOut(), []
    for name, value in zip("edcba", (1, 2, 0, 3, 0), strict=True):
        found += segment([picture(value)])
        assert segment.left_out["small"] == 1
        left.of_image(segment.left_out, name)
        segment.left_out.clear()
    assert [x.class_ids.tolist() for x in found] == [[1], [2, 2], [2, 2], [2, 2], [2, 2]]
    assert left.sentences()[1:] == [
        "2 images of no kind that could be told, left to the model of N2a (a, c)",
        "1 image of the kind rat, which has no model, left to the model of N2a (b)",
    ]
    assert segment.bytes_for((9, 9)) == 9
    with pytest.raises(UserError, match="no model for 'rat'"):
        routed(by_brightness, {"HEK": of(cells(1))}, "rat")


def test_cells_of_a_model_without_classes_are_of_their_image_s_kind_also_where_it_takes_images_of_others():
    segment = routed(by_brightness, {"HEK": of(cells(0, 0)), "astro": of(cells(3))}, "HEK", CLASSES, {"HEK"})
    found = segment(map(picture, (1, 2, 0, 3)))  # HEK; N2a, which has no model; none; rat, which is no class
    assert [x.class_ids.tolist() for x in found] == [[1, 1], [2, 2], [0, 0], [0, 0]]
    segment = routed(by_brightness, {"HEK": of(cells(0)), "astro": of(cells(3))}, "astro", CLASSES, {"HEK"})
    assert [x.class_ids.tolist() for x in segment([picture(2)])] == [[3]], "what a model tells stays"


def test_an_image_is_of_the_kind_whose_examples_it_looks_like():
    angles = np.deg2rad([0, 10, 80, 90])
    examples = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    style = lambda images: np.stack([[1.0, 0.0] if image.max() < 2 else [0.0, 1.0] for image in images])  # noqa: E731
    vote = style_vote(style, examples, ["HEK", "HEK", "N2a", "N2a"])
    assert (vote(picture(1)), vote(picture(2))) == ("HEK", "N2a")
    with pytest.raises(UserError, match="no image whose kind is known"):
        style_vote(style, examples[:0], [])


def test_classes_are_brought_together_by_their_names():
    other = with_classes_of(of(cells(1, 2, 0)), ("N2a", "HEK"), CLASSES)
    (found,) = other([picture(1)])
    assert found.class_ids.tolist() == [2, 1, 0] and other.left_out == {"small": 1} and other.settings == {"least": 1}
    same = of(cells(1))
    assert with_classes_of(same, CLASSES, CLASSES) is same and with_classes_of(same, (), CLASSES) is same
    with pytest.raises(UserError, match="a model has the class rat"):
        with_classes_of(same, ("rat",), CLASSES)
