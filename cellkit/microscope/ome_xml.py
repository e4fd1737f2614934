"""OME-XML: channels and pixel sizes of an <Image>, and which images of an OME set lie in which of its files.

A file of a set is read by its own UUID: the images whose pixels lie in it, each once.
"""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree

from cellkit.errors import UserError
from cellkit.microscope.file_info import Channel
from cellkit.microscope.units import length_um, square_um, wavelength_nm


def ome_wavelengths(channel, said: list[str]) -> tuple[float, float]:
    """Return the emission and the excitation (nm, nan when unknown) of an OME <Channel> element."""
    name = channel.get("Name") or channel.get("ID") or "a channel"
    return tuple(
        wavelength_nm(
            channel.get(f"{kind}Wavelength"), channel.get(f"{kind}WavelengthUnit", "nm"), said, f"{kind} of {name}"
        )
        for kind in ("Emission", "Excitation")
    )


def ome_um_per_px(image, said: list[str]) -> float:
    """Micrometres per pixel from an OME <Image> element; nan when it does not say."""
    pixels = image.find("{*}Pixels")
    if pixels is None:
        return math.nan
    sides = (
        length_um(
            pixels.get(f"PhysicalSize{side}"), pixels.get(f"PhysicalSize{side}Unit", "µm"), said, f"PhysicalSize{side}"
        )
        for side in "XY"
    )
    return square_um(*sides, said)


def ome_channels(image, said: list[str]) -> list[Channel]:
    """Names and wavelengths from an OME <Image> element."""
    return [
        Channel.lit(element.get("Name") or "", *ome_wavelengths(element, said))
        for element in image.iterfind("{*}Pixels/{*}Channel")
    ]


def own_images(path: Path, text: str) -> tuple[list, str | None, tuple[str, ...]]:
    """Return the OME <Image>s whose pixels lie in this file, OME-XML of these alone where there are others, and notes.

    An image's pixels lie where its TiffData say: in the file of that UUID; without a UUID, in this one. A file whose own
    UUID is named nowhere is known by its name.
    """
    root = _parsed(path, text)
    if root is None:
        return [], None, ()
    own, companion = root.get("UUID"), ""
    binary = root.find("{*}BinaryOnly")
    if binary is not None:
        companion = Path(binary.get("MetadataFile", "").replace("\\", "/")).name
        root = _companion(path, companion, binary.get("UUID"))
    images = root.findall("{*}Image")
    named = [place for image in images for place in _places(image)]
    if not companion and not any(place is not None for place in named):
        return images, None, ()
    by_uuid = own is not None and any(place is not None and place[0] == own for place in named)

    def is_own(place) -> bool:
        if place is None:
            return not companion
        return place[0] == own if by_uuid else place[1].casefold() == path.name.casefold()

    kept, others = [], {}
    for image in images:
        places = _places(image)
        here = [is_own(place) for place in places]
        if any(here) and not all(here):
            files = sorted({place[1] for place in places if place is not None and place[1]})
            raise UserError(
                f"{path.name} is one of several files of one OME data set: image "
                f"'{image.get('Name') or image.get('ID')}' is spread over {', '.join(files[:4])}{', ...' * (len(files) > 4)}",
                "export each image as one OME-TIFF",
            )
        if any(here):
            kept.append(image)
        else:
            files = {place[1] or place[0] for place in places if place is not None} or {""}
            others |= dict.fromkeys(files)
            root.remove(image)
    if by_uuid and not others and not companion:
        return kept, None, ()
    if not kept:
        raise UserError(
            f"{path.name} has OME metadata of other files only: {', '.join(sorted(others)[:4])}",
            "give the files it names, or export each image as one OME-TIFF",
        )
    for image in kept:
        for data in image.iterfind("{*}Pixels/{*}TiffData"):
            for uuid in data.findall("{*}UUID"):
                data.remove(uuid)
    return kept, ElementTree.tostring(root, encoding="unicode"), _notes_of_set(path, sorted(others))


def _notes_of_set(path: Path, others: list[str]) -> tuple[str, ...]:
    """Say which other files the metadata names, and which of them are not beside this one."""
    if not others:
        return ()
    others = [name for name in others if name]
    told = lambda names: ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")  # noqa: E731
    text = f"one of a set: other images of it lie in {told(others)}" if others else "describes images without pixels"
    missing = [name for name in others if not (path.parent / Path(name).name).is_file()]
    return (f"{text}; not beside it: {told(missing)}" if missing else text,)


def _parsed(path: Path, text: str):
    """Return the root of OME-XML, None where it cannot be read; refuse a document type, which could expand without end."""
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise UserError(f"{path.name} has OME metadata with a document type", "export the file again without it")
    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError:
        return None


def _companion(path: Path, name: str, uuid: str | None):
    """Return the root of the metadata that describes a file of pixels: a companion, or another TIFF of the set."""
    import tifffile

    there = path.parent / name
    try:
        if not name or there.resolve() == path.resolve():
            raise FileNotFoundError
        if there.suffix.lower() in (".tif", ".tiff"):
            with tifffile.TiffFile(there) as tif:
                text = tif.ome_metadata or ""
        else:
            text = there.read_text(encoding="utf-8")
    except Exception as error:
        raise UserError(
            f"{path.name} is a part of an OME data set that {name or 'another file'} describes, which cannot be read beside it",
            f"put {name or 'that file'} into the same folder, or export each image as one OME-TIFF",
        ) from error
    root = _parsed(there, text)
    if root is None or (uuid and root.get("UUID") and root.get("UUID") != uuid):
        raise UserError(
            f"{path.name} is a part of an OME data set, and {name} beside it describes another one",
            "copy the files of the set again",
        )
    return root


def _places(image) -> list[tuple[str, str] | None]:
    """Return where the planes of an OME <Image> lie: (UUID, file name) of each TiffData, None for the file itself."""
    found: list[tuple[str, str] | None] = []
    for data in image.iterfind("{*}Pixels/{*}TiffData"):
        uuid = data.find("{*}UUID")
        found.append(None if uuid is None else ((uuid.text or "").strip(), Path(uuid.get("FileName", "")).name))
    return found
