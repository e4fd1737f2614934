"""Command lines that are refused, for the tests of the command line."""

import pytest


@pytest.fixture
def refused(said):
    """Call main, check that it refuses in two lines on stderr and says nothing else, return both lines."""

    def call(*arguments) -> str:
        code, out, err = said(*arguments)
        assert (code, out) == (2, "")
        assert len(err.splitlines()) == 2, err
        return err

    return call
