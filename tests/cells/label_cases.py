"""Where label images of other tools lie, for the tests of labels."""

import numpy as np
import pytest

from cellkit.errors import UserError
from cellkit.formats.label_images import read_labels


def picture(text):
    """Read a picture of digits, one row a line; anything else is background."""
    return np.array([[int(c) if c.isdigit() else 0 for c in line] for line in text.split()])


def refused(path):
    with pytest.raises(UserError) as error:
        read_labels(path)
    assert str(path) in str(error.value), "the file is named"
    return str(error.value)
