"""Numbers in a file's header: sizes and wavelengths as they are told, and unknown, with a word, where they are none.

A header is believed where it gives a positive number of a unit of length that a microscope can have. What it says otherwise
(0, -1, "0,5", a size in pixels, a pixel of 64 mm, pixels that are not square) makes the size unknown, and one sentence per
fault goes to `said`.
"""

from __future__ import annotations

import math

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
    value: object, unit: object, said: list[str], what: str = "pixel size", largest_um: float = LARGEST_UM
) -> float:
    """Return a told length in micrometres.

    Parameters
    ----------
    value, unit : object
        As they stand in the header; None or "" where it tells nothing.
    said : list of str
        Gets a sentence where something is told that is no length.
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
    >>> said = []
    >>> length_um("0,5", "µm", said), said
    (nan, ["pixel size is told as '0,5' µm, which is no length: taken as unknown"])
    """
    told, unit = str(value if value is not None else "").strip(), str(unit if unit is not None else "").strip()
    if not told or unit.casefold() in UNCALIBRATED:
        return math.nan
    unit_um = UM_PER_UNIT.get(unit) or UM_PER_UNIT.get(unit.casefold() if len(unit) > 2 else "", math.nan)  # Mm, mm
    found = positive(told) * unit_um
    if SMALLEST_UM <= found <= largest_um:
        return found
    why = "no length" if math.isnan(found) else "none of a microscope"
    said.append(f"{what} is told as '{told}' {unit}, which is {why}: taken as unknown")
    return math.nan


def square_um(x_um: float, y_um: float, said: list[str]) -> float:
    """Return the side of a pixel; nan, and said, where width and height differ; the width where no height is told.

    Examples
    --------
    >>> said = []
    >>> square_um(0.5, 0.5, said), square_um(0.5, 0.25, said), said
    (0.5, nan, ['pixels are 0.5 um wide and 0.25 um high, not square: their size is taken as unknown'])
    """
    if abs(x_um - y_um) > NOT_SQUARE * max(x_um, y_um):
        said.append(f"pixels are {x_um:.4g} um wide and {y_um:.4g} um high, not square: their size is taken as unknown")
        return math.nan
    return x_um


def wavelength_nm(value: object, unit: object, said: list[str], what: str = "a wavelength") -> float:
    """Return a told wavelength in nm, nan when unknown; `said` as in `length_um`.

    Examples
    --------
    >>> said = []
    >>> wavelength_nm("0.52", "µm", said), wavelength_nm("Far Red", "nm", said), wavelength_nm(None, "nm", said), len(said)
    (520.0, nan, nan, 1)
    """
    told = str(value if value is not None else "").strip()
    nm = round(positive(told) * UM_PER_UNIT.get(str(unit), math.nan) * 1000, 3)
    if SHORTEST_NM <= nm <= LONGEST_NM:
        return nm
    if told:
        why = "no wavelength" if math.isnan(nm) else "none of a microscope"
        said.append(f"{what} is told as '{told}' {unit}, which is {why}: taken as unknown")
    return math.nan
