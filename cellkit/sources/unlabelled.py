"""Images without labels in a source where others have them: left out and named, or kept (``convert.unlabelled``)."""

from __future__ import annotations

from collections.abc import Sequence

from cellkit.cells.records import MIXED
from cellkit.config.sections import Config, ConvertConfig
from cellkit.errors import Quarantined, UserError, counted, raise_or_collect, readable
from cellkit.log import LOG
from cellkit.sources.listing import SourceImage
from cellkit.sources.source_tables import competition_ids

NO_TRUTH = "has no truth, while other images of the source have"


def apart_from_bare(items: list[SourceImage], config: ConvertConfig) -> tuple[list[SourceImage], list[SourceImage]]:
    """Return the images to use, and those without labels among others with, which are no test images by chance.

    Test images that the source itself calls so, and mixed ones, stay: they are predicted. `convert_images` names the others.
    Where ``config.unlabelled`` is keep, all stay.
    """
    if config.unlabelled == "keep" or all(item.bare for item in items):
        return items, []
    wanted = [not item.bare or bool(item.split) or item.cell_type == MIXED for item in items]
    kept = [item for item, use in zip(items, wanted, strict=True) if use]
    return kept, [item for item, use in zip(items, wanted, strict=True) if not use]


def has_own_split(items: Sequence[SourceImage], config: ConvertConfig) -> bool:
    """Tell whether the source has a split for every image, but for those without labels that are kept among others with."""
    labelled = [item for item in items if not item.bare] if config.unlabelled == "keep" else []
    return all(item.split for item in labelled or items)


def with_truth(items: Sequence[SourceImage], done: list, config: ConvertConfig) -> tuple[list, list[Quarantined]]:
    """Leave out images without truth among others with: but not test images, which are predicted and handed in.

    Those are named as well, but for the test images of a competition: those that the source itself calls so, none with truth.
    Where ``config.unlabelled`` is keep, nothing is left out, and test images are named that the source itself calls so.
    """
    if all(result[1] is None for result in done):
        return done, []
    keep = config.unlabelled == "keep"
    bare = [result for result in done if result[1] is None]
    competition = competition_ids(items, done)
    unnamed = competition | ({item.image_id for item in items if not item.is_own_test} if keep else set())
    named = [
        Quarantined(
            record.source, NO_TRUTH + (": predicted and handed in, not scored" if record.split == "test" else "")
        )
        for record, *_ in bare
        if record.image_id not in unnamed
    ]
    if competition:
        count = sum(record.image_id in competition for record, *_ in bare)
        LOG.warning(f"{counted(count, 'test image')} came without truth: predicted and handed in, not scored")
    return [result for result in done if keep or result[1] is not None or result[0].split == "test"], named


def makes_difference(items: Sequence[SourceImage], done: Sequence) -> bool:
    """Tell whether ``convert.unlabelled`` decides about any image: one without labels, among others with.

    Test images that the source itself calls so do not count: they stay, whatever it says.

    Parameters
    ----------
    items : sequence of SourceImage
        All of the source.
    done : sequence of tuple
        Record and instances (or None) of each image that could be read, and more.
    """
    tests = {item.image_id for item in items if item.is_own_test}
    by_name = {item.image_id: not item.bare for item in items if not item.is_left}
    found = {record.image_id: cells is not None for record, cells, *_ in done}
    return any(
        any(known.values()) and not all(labelled or name in tests for name, labelled in known.items())
        for known in (by_name, found)
    )


def refuse_untaught(items: Sequence[SourceImage], settings: Config) -> None:
    """Refuse a teacher under ``label.use: truth`` where images without labels, which it would label, would be left out.

    Raises
    ------
    UserError
        Some images came with labels, and others, no test images, without.
    """
    images = [item for item in items if not item.is_left]
    bare = [item for item in images if item.bare and item.split != "test"]
    if settings.label.teacher and settings.label.use == "truth" and 0 < len(bare) < len(images):
        raise_or_collect(
            UserError(
                f"label.teacher is true and label.use is truth, under which the {len(bare)} of {counted(len(images), 'image')} "
                f"without labels are left out and not taught from, e.g. {readable(bare[0].source)}",
                "name the folder of your labels in label.use: the teacher then labels all others; or move the images without "
                "labels away",
            )
        )
