"""Writes GGUF files (version 3, little-endian) tensor by tensor, whole or not at all.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Key-values of another file are copied as
their bytes, so that their types stay and a long vocabulary costs nothing.
"""

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from hotset.core.errors import HotsetError
from hotset.formats.gguf_file import LAID_OUT_ANEW, Metadata, read_gguf
from hotset.formats.keys import shown
from hotset.formats.output import written
from hotset.formats.tensor import Tensor, TensorType

_ALIGNMENT = 32
_STRING, _ARRAY = 8, 9
_SCALARS: tuple[tuple[int, str, Callable[[Any], bool]], ...] = (
    (7, "?", lambda value: isinstance(value, bool)),
    (6, "f", lambda value: isinstance(value, float)),
    (4, "I", lambda value: isinstance(value, int) and 0 <= value < 1 << 32),
    (5, "i", lambda value: isinstance(value, int) and -(1 << 31) <= value < 0),
    (10, "Q", lambda value: isinstance(value, int) and 0 <= value < 1 << 64),
    (11, "q", lambda value: isinstance(value, int) and -(1 << 63) <= value < 0),
)
_ARRAY_TYPES = {
    "|u1": 0,
    "|i1": 1,
    "<u2": 2,
    "<i2": 3,
    "<u4": 4,
    "<i4": 5,
    "<f4": 6,
    "|b1": 7,
    "<u8": 10,
    "<i8": 11,
    "<f8": 12,
}
_WRITTEN_HERE = ("hotset.convert.", "hotset.quantize.")


@dataclass(frozen=True)
class Raw:
    """A value as its type's number and bytes, such as `Metadata.raw` gives them."""

    data: bytes


@dataclass(frozen=True)
class NewTensor:
    """A tensor to write. ``shape`` is in NumPy order, so a matrix is (rows, columns)."""

    name: str
    shape: tuple[int, ...]
    type: TensorType
    chunks: Callable[[], Iterable[NDArray[np.uint8] | bytes]]
    """Gives its ``nbytes`` bytes in order, in pieces, when it is its turn: memory holds one piece."""

    @property
    def nbytes(self) -> int:
        """Bytes, without padding."""
        return prod(self.shape) // self.type.block_size * self.type.block_bytes


def same_tensor(tensor: Tensor, name: str | None = None) -> NewTensor:
    """A tensor of an opened file as it is, perhaps under another name."""
    return NewTensor(name or tensor.name, tensor.shape, tensor.type, lambda: (tensor.data,))


def same_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """An opened GGUF's key-values, in order, to change and write; without what a split file's parts have."""
    if not isinstance(metadata, Metadata):
        raise TypeError("only a GGUF file's metadata has GGUF's types")
    changed = metadata.changed
    return {
        key: changed[key] if key in changed else Raw(metadata.raw(key))
        for key in metadata
        if not key.startswith(LAID_OUT_ANEW)
    }


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Sequence[NewTensor],
    progress: Callable[[int, int], None] | None = None,
    finish: Callable[[Path], None] | None = None,
) -> int:
    """Write `path`, whole or not at all (`hotset.formats.output.written`); its size in bytes.

    Values are `Raw`, str, bool, int (the first of UINT32, INT32, UINT64, INT64 that holds it), float
    (FLOAT32), ``list[str]`` or one-dimensional NumPy arrays, whose dtype is the entries' type.
    `progress(done, total)` counts bytes of tensors. `finish` is given the whole file before it gets its name:
    it may read it, and `overwrite` values. What the system refuses is a `HotsetError`; what `chunks` raises
    is passed on.
    """
    with written(path) as temporary:
        with temporary.open("wb") as file:
            _write(file, metadata, tensors, progress)
            size = file.tell()
        if finish:
            finish(temporary)
    return size


def is_written_here(path: Path) -> bool:
    """Whether a file is a GGUF file that `hotset convert`, `quantize` or their like have written."""
    try:
        return any(key.startswith(_WRITTEN_HERE) for key in read_gguf(path).metadata)
    except HotsetError:
        return False


def overwrite(path: Path, values: Mapping[str, Any]) -> None:
    """Change values of a file just written, in place: each must be as long as the one that it replaces."""
    spans = read_gguf(path).metadata.span
    with path.open("r+b") as file:
        for key, value in values.items():
            start, end = spans(key)
            data = _value(key, value)
            if len(data) != end - start:
                raise ValueError(f"{key}: expected {end - start} bytes, got {len(data)}")
            file.seek(start)
            file.write(data)


def _write(
    file: BinaryIO,
    metadata: Mapping[str, Any],
    tensors: Sequence[NewTensor],
    progress: Callable[[int, int], None] | None,
) -> None:
    file.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
    for key, value in metadata.items():
        file.write(_string(key) + _value(key, value))
    offset = 0
    for tensor in tensors:
        rank = len(tensor.shape)
        file.write(_string(tensor.name) + struct.pack(f"<I{rank}Q", rank, *tensor.shape[::-1]))
        file.write(struct.pack("<IQ", tensor.type, offset))
        offset += tensor.nbytes + -tensor.nbytes % _ALIGNMENT
    done, total = 0, sum(tensor.nbytes for tensor in tensors)
    for tensor in tensors:
        file.write(bytes(-file.tell() % _ALIGNMENT))
        start = done
        for chunk in tensor.chunks():
            done += file.write(chunk if isinstance(chunk, bytes) else chunk.data)
            if progress:
                progress(done, total)
        if done - start != tensor.nbytes:
            raise ValueError(f"{tensor.name}: expected {tensor.nbytes} bytes, got {done - start}")
    file.write(bytes(-file.tell() % _ALIGNMENT))


def _string(text: str) -> bytes:
    data = text.encode(errors="replace")  # names of files need not be UTF-8
    return struct.pack("<Q", len(data)) + data


def _value(key: str, value: Any) -> bytes:
    """A value as GGUF's type number and bytes."""
    if isinstance(value, Raw):
        return value.data
    if isinstance(value, np.ndarray | list):
        return struct.pack("<I", _ARRAY) + _array(key, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    for kind, code, fits in _SCALARS:
        if fits(value):
            return struct.pack("<I" + code, kind, value)
    raise _no_type(key, value)


def _array(key: str, values: NDArray[Any] | list[Any]) -> bytes:
    if isinstance(values, list):
        if not all(isinstance(entry, str) for entry in values):
            raise _no_type(key, values)
        return struct.pack("<IQ", _STRING, len(values)) + b"".join(map(_string, values))
    little = values.astype(values.dtype.newbyteorder("<"))
    if values.ndim != 1 or little.dtype.str not in _ARRAY_TYPES:
        raise _no_type(key, values)
    return struct.pack("<IQ", _ARRAY_TYPES[little.dtype.str], values.size) + little.tobytes()


def _no_type(key: str, value: object) -> TypeError:
    return TypeError(f"{key}: GGUF has no type for {shown(value)}")
