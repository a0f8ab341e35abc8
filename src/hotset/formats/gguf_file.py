"""GGUF files (versions 2 and 3, little-endian), memory-mapped: the container, without what it means.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. An own reader beside the `gguf` library's,
which trusts the header and builds an object for every token of the vocabulary. Here nothing is allocated by a
count that the file's size does not support, and long arrays are decoded when they are looked up.
"""

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotset.core.errors import CheckpointError
from hotset.formats.keys import Keys, shown
from hotset.formats.mapped import map_file
from hotset.formats.tensor import Tensor, TensorType

LAID_OUT_ANEW = ("general.alignment", "split.")
"""Beginnings of keys that say how a file lies, not what the model is."""

_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRUCTS = {kind: struct.Struct("<" + code) for kind, code in _SCALARS.items()}
_U32, _U64 = _STRUCTS[4], _STRUCTS[10]
_MAX_NAME = 65535  # the format's limit for keys
_MAX_DIMS = 4
_MAX_ENTRIES = 1 << 20  # key-values, tensors
_MAX_DEPTH = 4  # of arrays in arrays
_MAX_STRINGS = 1 << 24  # in one array: sixty times the largest vocabulary
_REMOVED = {4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8"}
_REMOVED |= {36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8"}
_SPLIT_NAME = re.compile(r"(.+)-(\d{5})-of-(?!00000)(\d{5})\.gguf")


class Metadata(Mapping[str, Any]):
    """GGUF's key-values: Python scalars, ``list[str]``, NumPy arrays; these are decoded at look-up.

    Looking up a value that cannot be read (text that is not UTF-8, arrays of arrays) is a `CheckpointError`;
    as long as nobody needs it, it is no reason to refuse the file.
    """

    def __init__(self, cursor: "_Cursor") -> None:
        self._cursor = cursor
        self._values: dict[str, Any] = {}
        self._spans: dict[str, tuple[int, int]] = {}
        self.changed: dict[str, Any] = {}
        """Values that have taken the place of the file's, or that it does not have."""

    def __getitem__(self, key: str) -> Any:
        value = self._values[key]
        if isinstance(value, _Unreadable):
            raise self._cursor.error(f"key {shown(key)} {value.problem}")
        if isinstance(value, _Array):
            value = self._values[key] = self._cursor.decode(value, key)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def length(self, key: str) -> int:
        """Entries of an array, without decoding it."""
        value = self._values[key]
        if isinstance(value, _Array):
            return value.count
        if isinstance(value, list | np.ndarray):
            return len(value)
        raise self._cursor.error(f"{key}: expected an array, found {shown(value)}")

    def raw(self, key: str) -> bytes:
        """A value as it lies in the file: its type's number, then its bytes."""
        return self._cursor.slice(*self.span(key))

    def span(self, key: str) -> tuple[int, int]:
        """Where in the file `raw` lies: its first byte, and the one behind its last."""
        return self._spans[key]

    def change(self, key: str, value: Any) -> None:
        """Put a value in place of the file's, or add it."""
        self._values[key] = self.changed[key] = value

    def insert(self, key: str, value: Any, start: int, end: int) -> None:
        """Take in a value just read from these bytes of the file."""
        if key in self._values:
            raise self._cursor.error(f"key {shown(key)} is there twice")
        self._values[key] = value
        self._spans[key] = (start, end)


@dataclass(frozen=True)
class GGUFFile:
    """One file, or a split model's parts together: key-values of the first, tensors of all."""

    metadata: Metadata
    tensors: Mapping[str, Tensor]
    powerinfer: bool = False
    """Whether the file begins with PowerInfer's magic; all else is GGUF."""


def read_gguf(path: Path) -> GGUFFile:
    """Open a GGUF file; given any part of a split model, all its parts."""
    file = _read_part(path)
    count = _split_number(file, path, "split.count")
    name = _SPLIT_NAME.fullmatch(path.name)
    named_count = int(name[3]) if name else 1
    if count in (0, 1) and named_count == 1:
        return file
    if name is None or count != named_count:
        raise CheckpointError(
            f"{path}: split.count: found {count}, but the name says {named_count}; parts are named"
            " NAME-00001-of-00003.gguf"
        )
    return _join([path.with_name(part) for part in split_parts(path.name)], count)


def split_parts(name: str) -> list[str]:
    """Names of all parts of a split model, given any one's; a whole model's is its own only part."""
    match = _SPLIT_NAME.fullmatch(name)
    if match is None:
        return [name]
    return [f"{match[1]}-{number:05d}-of-{match[3]}.gguf" for number in range(1, int(match[3]) + 1)]


def _join(paths: list[Path], count: int) -> GGUFFile:
    files = []
    tensors: dict[str, Tensor] = {}
    for number, path in enumerate(paths):
        if not path.exists():
            raise CheckpointError(f"{path}: part {number + 1} of {count} is missing")
        file = _read_part(path)
        for key, expected in (("split.no", number), ("split.count", count)):
            if (found := _split_number(file, path, key)) != expected:
                raise CheckpointError(
                    f"{path}: {key}: expected {expected}, found {found}; is this another part?"
                )
        for name in file.tensors.keys() & tensors.keys():
            raise CheckpointError(f"{path}: tensor {shown(name)} is in another part too")
        tensors |= file.tensors
        files.append(file)
    if (total := _split_number(files[0], paths[0], "split.tensors.count")) != len(tensors):
        raise CheckpointError(
            f"{paths[0]}: split.tensors.count: found {total}, but the parts have {len(tensors)}"
        )
    return GGUFFile(files[0].metadata, tensors)


def _split_number(file: GGUFFile, path: Path, key: str) -> int:
    return Keys(file.metadata, str(path)).integer(key, 0, low=0)


def _read_part(path: Path) -> GGUFFile:
    data = map_file(path)
    cursor = _Cursor(path, data)
    try:
        return _parse(cursor, data)
    except (struct.error, OverflowError):  # a read behind the end
        raise cursor.error("the header is cut off: the file is truncated") from None


def _parse(cursor: "_Cursor", data: NDArray[np.uint8]) -> GGUFFile:
    magic = data[:4].tobytes()
    if magic not in (b"GGUF", b"PWRI"):
        raise cursor.error(f"not a GGUF file: expected it to begin with GGUF, found {shown(magic)}")
    cursor.position = 4
    version = cursor.number(_U32)
    if version not in (2, 3):
        big = version in (2 << 24, 3 << 24)
        found = "a big-endian file" if big else f"version {version}"
        raise cursor.error(f"expected a little-endian GGUF file of version 2 or 3, found {found}")
    n_tensors = cursor.count(24, _MAX_ENTRIES)
    n_keys = cursor.count(13, _MAX_ENTRIES)
    metadata = Metadata(cursor)
    for _ in range(n_keys):
        key = cursor.string(_MAX_NAME)
        start = cursor.position
        metadata.insert(key, cursor.value(key), start, cursor.position)
    entries = [cursor.tensor() for _ in range(n_tensors)]

    tensors = _map_tensors(cursor, entries, metadata.get("general.alignment", 32), data)
    return GGUFFile(metadata, tensors, powerinfer=magic == b"PWRI")


def _map_tensors(
    cursor: "_Cursor", entries: list["_Entry"], alignment: Any, data: NDArray[np.uint8]
) -> dict[str, Tensor]:
    """Find the tensors' bytes, which begin at the first aligned place behind the header."""
    if not isinstance(alignment, int) or not 8 <= alignment <= 1 << 16 or alignment & (alignment - 1):
        raise cursor.error(
            f"general.alignment: expected a power of two from 8 to 65536, found {shown(alignment)}"
        )
    start = -(-cursor.position // alignment) * alignment
    tensors: dict[str, Tensor] = {}
    end, last = 0, ""
    for entry in sorted(entries, key=lambda e: e.offset):
        name = shown(entry.name)
        if entry.offset % alignment or entry.offset < end:
            problem = f"overlaps {last}" if entry.offset < end else f"is not aligned to {alignment} bytes"
            raise cursor.error(f"tensor {name} at offset {entry.offset} {problem}")
        begin, end, last = entry.offset, entry.offset + entry.nbytes, name
        if start + end > data.size:
            raise cursor.error(
                f"tensor {name} ends at byte {start + end} of {data.size}: the file is truncated"
            )
        if entry.name in tensors:
            raise cursor.error(f"tensor {name} is there twice")
        tensors[entry.name] = Tensor(entry.name, entry.type, entry.shape, data[start + begin : start + end])
    return {entry.name: tensors[entry.name] for entry in entries}  # in the file's order


@dataclass(frozen=True)
class _Array:
    """An array not yet decoded: where its first entry lies, and where the array ends."""

    kind: int
    count: int
    start: int
    end: int


@dataclass(frozen=True)
class _Unreadable:
    """A value that Hotset cannot read, and why."""

    problem: str


@dataclass(frozen=True)
class _Entry:
    """A tensor's line in the header; ``offset`` counts from the start of the data."""

    name: str
    type: TensorType
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class _Cursor:
    """Reads the header front to back. Reading behind the end raises struct.error or OverflowError."""

    def __init__(self, path: Path, data: NDArray[np.uint8]) -> None:
        self._path = path
        self._view = memoryview(data.data)
        self.position = 0

    def error(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{self._path}: {problem}")

    def slice(self, start: int, end: int) -> bytes:
        return bytes(self._view[start:end])

    def number(self, kind: struct.Struct) -> Any:
        (value,) = kind.unpack_from(self._view, self.position)
        self.position += kind.size
        return value

    def count(self, least_bytes: int, most: int | None = None) -> int:
        """A count of things that take at least so many bytes each, so that it cannot exceed what is left."""
        count: int = self.number(_U64)
        if count * least_bytes > len(self._view) - self.position:
            raise self.error(f"the header announces {count} entries, more than the file holds: it is damaged")
        if most is not None and count > most:
            raise self.error(f"the header announces {count} entries: expected at most {most}")
        return count

    def string(self, limit: int | None = None) -> str:
        try:
            return str(self._string_bytes(limit), "utf-8")
        except UnicodeDecodeError:
            raise self.error("a name in the header is not UTF-8: the file is damaged") from None

    def _string_bytes(self, limit: int | None = None) -> memoryview:
        length = self.count(1, limit)
        start = self.position
        self.position += length
        return self._view[start : self.position]

    def value(self, key: str) -> Any:
        kind = self.number(_U32)
        if kind in _STRUCTS:
            return self.number(_STRUCTS[kind])
        if kind == _STRING:
            raw = self._string_bytes()
            try:
                return str(raw, "utf-8")
            except UnicodeDecodeError:
                return _Unreadable("has text that is not UTF-8")
        if kind != _ARRAY:
            raise self.error(
                f"key {shown(key)} has value type {kind}, which GGUF does not know: it is damaged"
            )
        array = self._array(key, 0)
        return _Unreadable("has arrays of arrays, which Hotset does not read") if array is None else array

    def _array(self, key: str, depth: int) -> "_Array | None":
        """Where an array lies; None for one of arrays. The position is then behind it."""
        kind = self.number(_U32)
        if kind in _STRUCTS:
            count = self.count(_STRUCTS[kind].size)
            start = self.position
            self.position += count * _STRUCTS[kind].size
        elif kind == _STRING:
            count = self.count(_U64.size, _MAX_STRINGS)
            start = self.position
            self.position = self._skip_strings(start, count)
        elif kind == _ARRAY and depth < _MAX_DEPTH:
            for _ in range(self.count(_U32.size + _U64.size, _MAX_ENTRIES)):
                self._array(key, depth + 1)
            return None
        else:
            what = f"arrays more than {_MAX_DEPTH} deep" if kind == _ARRAY else f"entries of type {kind}"
            raise self.error(f"key {shown(key)} has {what}, which GGUF does not know: it is damaged")
        return _Array(kind, count, start, self.position)

    def _skip_strings(self, position: int, count: int) -> int:
        view, unpack = self._view, _U64.unpack_from
        for _ in range(count):
            position += 8 + unpack(view, position)[0]
        if position > len(view):
            raise struct.error
        return position

    def decode(self, array: _Array, key: str) -> Any:
        raw = self.slice(array.start, array.end)
        if array.kind != _STRING:
            return np.frombuffer(raw, dtype=np.dtype("<" + _SCALARS[array.kind]))
        strings, position, unpack = [], 0, _U64.unpack_from
        try:
            for _ in range(array.count):
                start = position + 8
                position = start + unpack(raw, position)[0]
                strings.append(raw[start:position].decode())
        except UnicodeDecodeError:
            raise self.error(
                f"key {shown(key)} has a string that is not UTF-8: the file is damaged"
            ) from None
        return strings

    def tensor(self) -> _Entry:
        name = self.string(_MAX_NAME)
        n_dims = self.number(_U32)
        if not 1 <= n_dims <= _MAX_DIMS:
            raise self.error(f"tensor {shown(name)}: expected 1 to {_MAX_DIMS} dimensions, found {n_dims}")
        shape = tuple(self.number(_U64) for _ in range(n_dims))[::-1]
        type = self._type(name, self.number(_U32))
        offset: int = self.number(_U64)
        elements = prod(shape)
        if elements == 0 or shape[-1] % type.block_size:
            raise self.error(
                f"tensor {shown(name)}: expected rows of a multiple of {type.block_size} numbers for type"
                f" {type.name}, found shape {list(shape)}"
            )
        return _Entry(name, type, shape, offset, elements // type.block_size * type.block_bytes)

    def _type(self, name: str, number: int) -> TensorType:
        try:
            return TensorType(number)
        except ValueError:
            from gguf import GGMLQuantizationType

            known = {int(kind): kind.name for kind in GGMLQuantizationType}
            if number in _REMOVED:
                found = f"{number} ({_REMOVED[number]}), which GGUF no longer has"
            elif number in known:
                found = f"{known[number]}, which Hotset does not run"
            else:
                found = f"{number}, which is none of GGUF's: other programs' own types are not read"
            raise self.error(
                f"tensor {shown(name)} has type {found}; take a file of another type, such as Q4_K"
            ) from None
