"""Pickled dictionaries of arrays, as Cellpose writes them: nothing they name is ever imported or called.

`read_plain_npy` lets Python's unpickler build numbers, texts, lists, tuples, sets, dictionaries and, from stand-ins, numpy arrays
of plain types. A pickle that names anything else (`os.system`, a class, an object array) is refused, and so is one that would
need a forbidden opcode. There is no look-up of names in modules, so there is nothing to get around. `read_plain_pickle` reads
the same without an ``.npy`` around it.
"""

from __future__ import annotations

import io
import math
import pathlib
import pickle
import pickletools
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cellkit.errors import UserError

MAGIC = b"\x93NUMPY"
LARGEST_FILE_BYTES = 2**32
DEEPEST = 50
CELLPOSE = "save it again with Cellpose 2 or later"
PLAIN_TYPE = re.compile(r"b1|[iu][1248]|f[248]|c(8|16)|[SU]\d{1,6}|O8?")
DAMAGED = (pickle.UnpicklingError, struct.error, EOFError, MemoryError, RecursionError, ArithmeticError, LookupError, TypeError,
           ValueError)  # fmt: skip
SCALARS = (str, bytes, int, float, bool, complex, type(None))


def read_plain_npy(path: str | Path) -> dict:
    """Return the dictionary in an ``.npy`` file that numpy wrote with ``allow_pickle=True``.

    Returns
    -------
    dict
        Numbers, texts, containers and arrays (read-only views of the file's bytes); paths have become texts.

    Raises
    ------
    UserError
        No file, not ``.npy``, cut short, no dictionary, or anything in it that is not plain: with the name of what it is.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no file at {path}", "give a _seg.npy file")
    if path.stat().st_size > LARGEST_FILE_BYTES:
        raise UserError(f"{path} has {path.stat().st_size} bytes", "files up to 4 GiB are read; tile the image")
    data = path.read_bytes()
    try:
        return _dictionary(data[_header_end(data) :])
    except UserError as error:
        raise UserError(f"{path} {error}") from error
    except DAMAGED as error:
        raise UserError(f"{path} is damaged: {type(error).__name__} {str(error)[:100]}", CELLPOSE) from error


def read_plain_pickle(path: str | Path, remedy: str) -> dict:
    """Return the dictionary in a file that Python pickled, without ``.npy`` around it: as `read_plain_npy`.

    Parameters
    ----------
    remedy : str
        What to do where it is no such file.

    Raises
    ------
    UserError
        No file, cut short, no dictionary, or anything in it that is not plain: with the name of what it is.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no file at {path}", remedy)
    if path.stat().st_size > LARGEST_FILE_BYTES:
        raise UserError(f"{path} has {path.stat().st_size} bytes", "files up to 4 GiB are read")
    try:
        return _dictionary(path.read_bytes())
    except UserError as error:
        raise UserError(f"{path} {error.problem}", remedy) from error
    except DAMAGED as error:
        raise UserError(f"{path} is damaged: {type(error).__name__} {str(error)[:100]}", remedy) from error


def _header_end(data: bytes) -> int:
    """Return where the pickle begins; refuse what is no .npy file of one Python object."""
    if data[:6] != MAGIC or len(data) < 12:
        raise UserError("is no .npy file: it does not begin as one", CELLPOSE)
    size, begin = (2, 10) if data[6] == 1 else (4, 12)
    end = begin + int.from_bytes(data[8 : 8 + size], "little")
    header = data[begin:end].decode("latin-1")
    if end > len(data):
        raise UserError("is cut short", "copy the file again")
    if not re.search(r"'descr': '\|O'", header) or not re.search(r"'shape': \(\)", header):
        raise UserError(f"holds no dictionary but an array: {header.strip()[:80]}", "a _seg.npy file is one dictionary")
    return end


def _dictionary(pickled: bytes) -> dict:
    value = _Unpickler(pickled).load()
    if isinstance(value, _Array) and isinstance(value.items, list) and value.shape == () and len(value.items) == 1:
        value = value.items[0]
    value = _plain(value, {}, 0)
    if not isinstance(value, dict):
        raise UserError(f"holds no dictionary but a {type(value).__name__}", CELLPOSE)
    return value


# ---- what a pickle may name ----------------------------------------------------------------------------------------
@dataclass(eq=False)
class _Name:
    """A global of the pickle: what it is called and what its call means here; never the thing itself."""

    full: str
    call: Callable[..., Any] | None


@dataclass(eq=False)
class _Type:
    """A numpy dtype in the making."""

    code: str
    order: str = "="

    def set_state(self, state: Any) -> None:
        """Take the byte order; refuse types with fields."""
        if not isinstance(state, tuple) or len(state) < 5 or state[1] not in ("<", ">", "=", "|"):
            raise UserError("holds a damaged dtype", CELLPOSE)
        if any(part is not None for part in state[2:5]):
            raise UserError("holds an array of a structured type", "only numbers and texts are read")
        self.order = state[1]

    @property
    def dtype(self) -> np.dtype:
        """The dtype itself."""
        return np.dtype(self.code if self.order == "|" else self.order + self.code)


@dataclass(eq=False)
class _Array:
    """An array in the making; `items` is the list of an array of Python objects."""

    shape: tuple | None = None
    value: np.ndarray | None = None
    items: list | None = None

    def set_state(self, state: Any) -> None:
        """Check shape, type and number of bytes, then look at the bytes as an array."""
        _, shape, kind, by_columns, data = state
        if not isinstance(kind, _Type) or not all(isinstance(n, int) and n >= 0 for n in shape):
            raise UserError("holds a damaged array", CELLPOSE)
        self.shape = shape
        if kind.code.startswith("O"):
            self.items = data
            return
        data = data.encode("latin-1") if isinstance(data, str) else data
        if math.prod(shape) * kind.dtype.itemsize != len(data):
            raise UserError(f"holds an array {shape} {kind.code} of {len(data)} bytes: it is damaged", CELLPOSE)
        flat = np.frombuffer(data, kind.dtype) if len(data) else np.zeros(0, kind.dtype)
        self.value = flat.reshape(shape, order="F" if by_columns else "C")


def _dtype(code: Any, *flags: Any) -> _Type:
    if not isinstance(code, str) or not PLAIN_TYPE.fullmatch(code):
        raise UserError(f"holds an array of type {str(code)[:20]!r}", "only numbers and texts are read")
    return _Type(code)


def _scalar(kind: Any, data: Any) -> Any:
    if not isinstance(kind, _Type) or kind.code.startswith("O"):
        raise UserError("holds a numpy scalar of Python objects", "only numbers and texts are read")
    data = data.encode("latin-1") if isinstance(data, str) else data
    if len(data) != kind.dtype.itemsize:
        raise UserError("holds a damaged number", CELLPOSE)
    return np.frombuffer(data, kind.dtype)[0].item()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1") or not isinstance(text, str):
        raise UserError(f"holds bytes encoded as {str(encoding)[:20]!r}", CELLPOSE)
    return text.encode("latin-1")


def _allowed() -> dict[str, Callable[..., Any] | None]:
    """Return {full name: what its call means}: how numpy 1 and 2 pickle arrays, and Python's own containers and paths."""
    names: dict[str, Callable[..., Any] | None] = {
        "numpy.ndarray": None,
        "numpy.dtype": _dtype,
        "_codecs.encode": _encode,
    }
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        names |= {f"{module}._reconstruct": lambda *_: _Array(), f"{module}.scalar": _scalar}
    for python in ("builtins", "__builtin__"):
        names[f"{python}.list"] = lambda items=(): list(_items(items))
        names[f"{python}.tuple"] = lambda items=(): tuple(_items(items))
        names |= {f"{python}.{kind.__name__}": lambda items=(): _set(items) for kind in (set, frozenset)}
        names[f"{python}.complex"] = complex
        names[f"{python}.bytes"] = lambda: b""  # how old protocols write no bytes
    for module in ("pathlib", "pathlib._local"):
        for kind in ("PosixPath", "PurePosixPath"):
            names[f"{module}.{kind}"] = lambda *parts: str(pathlib.PurePosixPath(*parts))
        for kind in ("WindowsPath", "PureWindowsPath"):
            names[f"{module}.{kind}"] = lambda *parts: str(pathlib.PureWindowsPath(*parts))
    return names


ALLOWED = _allowed()


def _items(items: Any) -> Any:
    if not isinstance(items, (list, tuple, set)):
        raise UserError(f"makes a container of a {type(items).__name__}", CELLPOSE)
    return items


def _set(items: Any) -> set:
    if not all(isinstance(item, SCALARS) for item in _items(items)):
        raise UserError("holds a set of other things than numbers and texts", CELLPOSE)
    return set(items)


def _named(module: Any, name: Any) -> _Name:
    full = f"{module}.{name}"
    if full not in ALLOWED:
        raise UserError(
            f"names {full[:80]}, which no array needs: the file may be an attack",
            "nothing of it was run; only arrays, numbers, texts and containers are read",
        )
    return _Name(full, ALLOWED[full])


# ---- the unpickler -------------------------------------------------------------------------------------------------
OPCODES = {
    "PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "GET",
    "BINGET", "LONG_BINGET", "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1",
    "LONG4", "FLOAT", "BINFLOAT", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES",
    "SHORT_BINBYTES", "BINBYTES8", "STRING", "BINSTRING", "SHORT_BINSTRING", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_TUPLE",
    "EMPTY_SET", "LIST", "DICT", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET", "APPEND", "APPENDS", "SETITEM",
    "SETITEMS", "ADDITEMS", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD",
}  # fmt: skip


def _refusing(name: str) -> Callable[[Any], None]:
    def refuse(unpickler: Any) -> None:
        raise UserError(f"uses the pickle opcode {name}, which no array needs", "nothing of it was run")

    return refuse


class _Unpickler(pickle._Unpickler):
    """Python's unpickler with no opcode but `OPCODES`, stand-ins for names, and a look at what is called, filled and hashed.

    Not the one written in C: there a file can ask for a memo of 32 GB, and have a key hashed for ever, before anyone can look.
    """

    dispatch = pickle._Unpickler.dispatch | {
        ord(code.code): _refusing(code.name) for code in pickletools.opcodes if code.name not in OPCODES
    }

    def __init__(self, data: bytes):
        super().__init__(io.BytesIO(data), encoding="latin-1")
        self.may_make = len(data)  # bytes and items; each stand-in is called with a part of the file of its own

    def find_class(self, module: str, name: str) -> _Name:
        """Return the stand-in of a name; nothing is looked up in a module."""
        return _named(module, name)

    def load_reduce(self) -> None:
        """Call a stand-in."""
        arguments, name = self.stack.pop(), self.stack.pop()
        if not isinstance(name, _Name) or name.call is None or not isinstance(arguments, tuple):
            raise UserError(f"calls a {type(name).__name__}", "nothing of it was run; only arrays are built")
        self.may_make -= sum(len(part) for part in arguments if isinstance(part, (str, bytes, list, tuple, set)))
        if self.may_make < 0:
            raise UserError("makes more of its parts than there is in it", CELLPOSE)
        self.append(name.call(*arguments))

    def load_build(self) -> None:
        """Set the state of a dtype or an array in the making."""
        state, target = self.stack.pop(), self.stack[-1]
        if not isinstance(target, (_Type, _Array)):
            raise UserError(f"sets the inside of a {type(target).__name__}", "nothing of it was run")
        target.set_state(state)

    def load_frozenset(self) -> None:
        """Make a set, which is what it is here."""
        items = self.pop_mark()
        self.append(_set(items))

    def load_additems(self) -> None:
        """Fill a set."""
        items = self.pop_mark()
        self._top(set).update(_set(items))

    def load_append(self) -> None:
        """Fill a list."""
        item = self.stack.pop()
        self._top(list).append(item)

    def load_appends(self) -> None:
        """Fill a list."""
        items = self.pop_mark()
        self._top(list).extend(items)

    def load_dict(self) -> None:
        """Make a dictionary."""
        items = self.pop_mark()
        self.append({})
        self._fill(items)

    def load_setitem(self) -> None:
        """Fill a dictionary."""
        value, key = self.stack.pop(), self.stack.pop()
        self._fill([key, value])

    def load_setitems(self) -> None:
        """Fill a dictionary."""
        self._fill(self.pop_mark())

    def _fill(self, items: list) -> None:
        target = self._top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, SCALARS):  # a tuple in a tuple in a tuple ... would take for ever to hash
                raise UserError(f"has a {type(key).__name__} as the key of a dictionary", "keys are texts or numbers")
            target[key] = value

    def _top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise UserError(f"fills a {type(self.stack[-1]).__name__} as if it were a {kind.__name__}", CELLPOSE)
        return self.stack[-1]

    for _action in (load_reduce, load_build, load_frozenset, load_additems, load_append, load_appends, load_dict, load_setitem,
                    load_setitems):  # fmt: skip
        dispatch[getattr(pickle, _action.__name__.removeprefix("load_").upper())[0]] = _action


def _plain(value: Any, done: dict[int, Any], depth: int) -> Any:
    """Return a value with its arrays finished; each object once, so that shared parts do not multiply."""
    if isinstance(value, (*SCALARS, set)):
        return value
    if depth > DEEPEST:
        raise UserError(f"is nested more than {DEEPEST} deep", CELLPOSE)
    if id(value) not in done:
        if isinstance(value, list):
            made: Any = [_plain(item, done, depth + 1) for item in value]
        elif isinstance(value, tuple):
            made = tuple(_plain(item, done, depth + 1) for item in value)
        elif isinstance(value, dict):
            made = {key: _plain(item, done, depth + 1) for key, item in value.items()}
        elif isinstance(value, _Array) and value.value is not None:
            made = value.value
        elif isinstance(value, _Array) and value.items is not None:
            raise UserError("holds an array of Python objects", "only numbers and texts are read")
        else:
            raise UserError(f"holds a {type(value).__name__.strip('_')} that is no value", CELLPOSE)
        done[id(value)] = made
    return done[id(value)]
