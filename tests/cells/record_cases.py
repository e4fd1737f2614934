"""Records in few words, for the tests of tables and splits."""

from cellkit.cells.records import ImageRecord


def image(image_id, **kwargs):
    return ImageRecord(str(image_id), f"images/{image_id}.png", 10, 20, **kwargs)
