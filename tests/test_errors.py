"""Errors: two lines for a person, a name and a reason for what was skipped, and a guess at the word that was meant."""

import dataclasses
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellkit.errors import Quarantined, UserError, nearest


def test_a_user_error_says_what_came_and_what_to_do():
    assert str(UserError("no file at a.csv", "run 01_convert")) == "no file at a.csv\nrun 01_convert"
    assert str(UserError("no file at a.csv")) == "no file at a.csv"


def test_a_user_error_is_no_usage_of_a_builtin_error():
    assert not issubclass(UserError, (ValueError, OSError))  # so that `except ValueError` never hides one


def test_a_user_error_survives_another_process():
    back = pickle.loads(pickle.dumps(UserError("came", "do")))  # as joblib returns it
    assert (type(back), str(back)) == (UserError, "came\ndo")


def test_a_notebook_shows_the_two_lines_and_no_traceback():
    from IPython.core.interactiveshell import InteractiveShell

    shell, shown = InteractiveShell(), []
    shell._showtraceback = lambda kind, error, lines: shown.append(lines)
    shell.run_cell("from cellkit.errors import UserError\nraise UserError('came', 'do')")
    assert shown == [["UserError: came\ndo"]]


def test_a_quarantined_item_cannot_be_changed():
    item = Quarantined("a.tif", "truncated")
    assert item == Quarantined("a.tif", "truncated")
    with pytest.raises(dataclasses.FrozenInstanceError):
        item.reason = ""


@pytest.mark.parametrize(
    ("word", "choices", "hint"),
    [
        ("sartorious", ["sartorius", "dsb2018"], " (did you mean 'sartorius'?)"),
        ("epoch", {"epochs": 1, "batch_size": 2}, " (did you mean 'epochs'?)"),
        ("epochs", (name for name in ("epoch", "steps")), " (did you mean 'epoch'?)"),
        ("01", [1, 10], " (did you mean '1'?)"),
        ("zzz", ["epochs"], ""),
        ("", ["epochs"], ""),
        ("epochs", [], ""),
        (None, ["none", "epochs"], " (did you mean 'none'?)"),
    ],
)
def test_nearest(word, choices, hint):
    assert nearest(word, choices) == hint


@given(st.text(max_size=20), st.lists(st.text(max_size=20), max_size=5))
def test_nearest_takes_any_text_and_names_a_choice(word, choices):
    hint = nearest(word, choices)
    assert hint == "" or hint.removeprefix(" (did you mean '").removesuffix("'?)") in choices
    assert not choices or nearest(choices[0], choices) == f" (did you mean '{choices[0]}'?)" or not choices[0]
