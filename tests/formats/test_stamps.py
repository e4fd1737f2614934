"""Label files that were changed since they were written are told from those that were not."""

import numpy as np
import pytest

from cellkit.errors import UserError
from cellkit.formats.label_images import as_written, refuse_changed, stamp_of, write_labels

LABELS = np.array([[1, 1, 0], [0, 2, 2]], np.int32)


def test_a_stamp_tells_a_file_that_was_changed(tmp_path):
    path = write_labels(tmp_path / "a.tif", LABELS, stamp_of(LABELS * 2))
    assert not as_written(path) and as_written(write_labels(path, LABELS, stamp_of(LABELS)))
    write_labels(path, LABELS, stamp_of(LABELS * 2))
    with pytest.raises(UserError, match="was changed since cellkit wrote it"):
        refuse_changed(path)
    refuse_changed(path, LABELS)
    refuse_changed(tmp_path / "b.tif")
