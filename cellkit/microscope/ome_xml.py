"""What headers say: sizes and wavelengths with their units; OME-XML, its channels, and which images lie in which file of a set.

A header is believed where it gives a positive number of a unit of length that a microscope can have. What it says otherwise
(0, -1, "0,5", a size in pixels, a pixel of 64 mm, pixels that are not square) makes the size unknown, and one sentence per
fault is noted. A file of an OME set is read by its own UUID: the images whose pixels lie in it, each once.
"""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree

from cellkit.errors import UserError
from cellkit.microscope.file_info import Channel

UM_PER_UNIT = {"µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "nm": 1e-3, "pm": 1e-6, "mm": 1e3, "cm": 1e4,
               "dm": 1e5, "m": 1e6, "Å": 1e-4, "inch": 25400.0, "in": 25400.0, "thou": 25.4, "ft": 304800.0,
               "micrometer": 1.0, "nanometer": 1e-3, "millimeter": 1e3, "meter": 1e6, "angstrom": 1e-4}  # fmt: skip
UNCALIBRATED = ("", "none", "pixel", "pixels", "px")  # how a file says that it knows no size
SMALLEST_UM, LARGEST_UM = 1e-6, 1e3  # of a pixel: below an atom, above a millimetre
SHORTEST_NM, LONGEST_NM = 100, 3000  # of light in a microscope: far ultraviolet to infrared
NOT_SQUARE = 0.01  # by how much of the larger the two sides of a pixel may differ


def positive(text: object) -> float:
    """Return a positive finite number, or nan.

    Examples
    --------
    >>> positive("0.5"), positive("0,5"), positive("-1"), positive("INF")
    (0.5, nan, nan, nan)
    """
    try:
        value = math.nan if isinstance(text, str) and "_" in text else float(text)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return math.nan
    return value if math.isfinite(value) and value > 0 else math.nan


def length_um(
    value: object, unit: object, notes: list[str], what: str = "pixel size", largest_um: float = LARGEST_UM
) -> float:
    """Return a length of a header in micrometres.

    Parameters
    ----------
    value, unit : object
        As they stand in the header; None or "" where it tells nothing.
    notes : list of str
        Gets a sentence where something stands that is no length.
    what : str
        What the sentence calls it.
    largest_um : float
        The largest that is believed.

    Returns
    -------
    float
        nan when unknown.

    Examples
    --------
    >>> length_um("500", "nm", []), length_um(0.1, "pixel", [])
    (0.5, nan)
    >>> notes = []
    >>> length_um("0,5", "µm", notes), notes
    (nan, ["pixel size is given as '0,5' µm, which is no length: taken as unknown"])
    """
    text, unit = str(value if value is not None else "").strip(), str(unit if unit is not None else "").strip()
    if not text or unit.casefold() in UNCALIBRATED:
        return math.nan
    unit_um = UM_PER_UNIT.get(unit) or UM_PER_UNIT.get(unit.casefold() if len(unit) > 2 else "", math.nan)  # Mm, mm
    found = positive(text) * unit_um
    if SMALLEST_UM <= found <= largest_um:
        return found
    why = "no length" if math.isnan(found) else "none of a microscope"
    notes.append(f"{what} is given as '{text}' {unit}, which is {why}: taken as unknown")
    return math.nan


def square_um(x_um: float, y_um: float, notes: list[str]) -> float:
    """Return the side of a pixel; nan, and a note, where width and height differ; the width where no height is given.

    Examples
    --------
    >>> notes = []
    >>> square_um(0.5, 0.5, notes), square_um(0.5, 0.25, notes), notes
    (0.5, nan, ['pixels are 0.5 um wide and 0.25 um high, not square: their size is taken as unknown'])
    """
    if abs(x_um - y_um) > NOT_SQUARE * max(x_um, y_um):
        notes.append(
            f"pixels are {x_um:.4g} um wide and {y_um:.4g} um high, not square: their size is taken as unknown"
        )
        return math.nan
    return x_um


def wavelength_nm(value: object, unit: object, notes: list[str], what: str = "a wavelength") -> float:
    """Return a wavelength of a header in nm, nan when unknown; `notes` as in `length_um`.

    Examples
    --------
    >>> notes = []
    >>> wavelength_nm("0.52", "µm", notes), wavelength_nm("Far Red", "nm", notes), wavelength_nm(None, "nm", notes), len(notes)
    (520.0, nan, nan, 1)
    """
    text = str(value if value is not None else "").strip()
    nm = round(positive(text) * UM_PER_UNIT.get(str(unit), math.nan) * 1000, 3)
    if SHORTEST_NM <= nm <= LONGEST_NM:
        return nm
    if text:
        why = "no wavelength" if math.isnan(nm) else "none of a microscope"
        notes.append(f"{what} is given as '{text}' {unit}, which is {why}: taken as unknown")
    return math.nan


def ome_wavelengths(channel: ElementTree.Element, notes: list[str]) -> tuple[float, float]:
    """Return the emission and the excitation (nm, nan when unknown) of an OME <Channel> element."""
    name = channel.get("Name") or channel.get("ID") or "a channel"
    return tuple(
        wavelength_nm(
            channel.get(f"{kind}Wavelength"), channel.get(f"{kind}WavelengthUnit", "nm"), notes, f"{kind} of {name}"
        )
        for kind in ("Emission", "Excitation")
    )


def ome_um_per_px(image: ElementTree.Element, notes: list[str]) -> float:
    """Micrometres per pixel from an OME <Image> element; nan when it does not say."""
    pixels = image.find("{*}Pixels")
    if pixels is None:
        return math.nan
    sides = (
        length_um(
            pixels.get(f"PhysicalSize{side}"), pixels.get(f"PhysicalSize{side}Unit", "µm"), notes, f"PhysicalSize{side}"
        )
        for side in "XY"
    )
    return square_um(*sides, notes)


def ome_channels(image: ElementTree.Element, notes: list[str]) -> list[Channel]:
    """Names and wavelengths from an OME <Image> element."""
    return [
        Channel.lit(element.get("Name") or "", *ome_wavelengths(element, notes))
        for element in image.iterfind("{*}Pixels/{*}Channel")
    ]


def own_images(path: Path, text: str) -> tuple[list, str | None, tuple[str, ...]]:
    """Return the OME <Image>s whose pixels lie in this file, OME-XML of these alone where there are others, and notes.

    An image's pixels lie where its TiffData say: in the file of that UUID; without a UUID, in this one. A file whose own
    UUID is named nowhere is known by its name.

    Raises
    ------
    UserError
        The metadata describes other files only, or an image that is spread over several files.
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
        own_file = [is_own(place) for place in places]
        if any(own_file) and not all(own_file):
            files = sorted({place[1] for place in places if place is not None and place[1]})
            raise UserError(
                f"{path.name} is one of several files of one OME data set: image "
                f"'{image.get('Name') or image.get('ID')}' is spread over {', '.join(files[:4])}{', ...' * (len(files) > 4)}",
                "export each image as one OME-TIFF",
            )
        if any(own_file):
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
    listing = lambda names: ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")  # noqa: E731
    text = f"one of a set: other images of it lie in {listing(others)}" if others else "describes images without pixels"
    missing = [name for name in others if not (path.parent / Path(name).name).is_file()]
    return (f"{text}; not beside it: {listing(missing)}" if missing else text,)


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

    other = path.parent / name
    try:
        if not name or other.resolve() == path.resolve():
            raise FileNotFoundError
        if other.suffix.lower() in (".tif", ".tiff"):
            with tifffile.TiffFile(other) as tif:
                text = tif.ome_metadata or ""
        else:
            text = other.read_text(encoding="utf-8")
    except Exception as error:
        raise UserError(
            f"{path.name} is a part of an OME data set that {name or 'another file'} describes, which cannot be read beside it",
            f"put {name or 'that file'} into the same folder, or export each image as one OME-TIFF",
        ) from error
    root = _parsed(other, text)
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
