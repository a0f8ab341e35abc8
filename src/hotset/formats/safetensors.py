"""Safetensors files, memory-mapped: an own reader, since the library gives NumPy no bfloat16.

Format: 8 bytes little-endian header length, a JSON header, the tensors' bytes, row-major and without gaps.
"""

import json
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotset.core.errors import CheckpointError
from hotset.formats.keys import shown
from hotset.formats.mapped import map_file
from hotset.formats.tensor import Tensor, TensorType

_TYPES = {"F32": TensorType.F32, "F16": TensorType.F16, "BF16": TensorType.BF16}
_MAX_HEADER = 100_000_000  # the format's own limit


def parse_json(text: bytes, where: str) -> dict[str, Any]:
    """Parse a JSON object; doubled keys are refused."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table: dict[str, Any] = {}
        for key, value in pairs:
            if key in table:
                raise ValueError(f"the key {key} is there twice")
            table[key] = value
        return table

    try:
        parsed = json.loads(text.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: not valid JSON ({shown(str(error))})") from None
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{where}: expected a JSON object, found {shown(parsed)}")
    return parsed


def read_safetensors(
    path: Path, ignored: tuple[str, ...] = (), raw: dict[str, NDArray[np.uint8]] | None = None
) -> dict[str, Tensor]:
    """Map a file's tensors by the file's own names, those with an `ignored` ending left out.

    Tensors of bytes are put into `raw`, where that is given.
    """
    data = map_file(path)
    length = int.from_bytes(data[:8].tobytes(), "little") if data.size >= 8 else -1
    if not 2 <= length <= min(data.size - 8, _MAX_HEADER):
        raise CheckpointError(
            f"{path}: not a whole safetensors file: header length {length} in a file of {data.size} bytes"
        )
    header = parse_json(data[8 : 8 + length].tobytes(), f"{path}: header")
    header.pop("__metadata__", None)
    body = data[8 + length :]
    tensors: dict[str, Tensor] = {}
    spans: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        where = f"{path}: tensor {shown(name)}"
        kind, shape, begin, end = _entry(entry, where)
        spans.append((begin, end, name))
        if end > body.size:
            raise CheckpointError(f"{where}: ends at byte {end} of {body.size}: the file is truncated")
        if name.endswith(ignored):
            continue
        if raw is not None and kind == "U8" and prod(shape) == end - begin:
            raw[name] = body[begin:end].reshape(shape)
            continue
        type = _TYPES.get(kind)
        if type is None:
            raise CheckpointError(
                f"{where} has type {shown(kind)}, which Hotset does not run; it reads F32, F16 and BF16"
            )
        if prod(shape) * type.block_bytes != end - begin:
            raise CheckpointError(
                f"{where}: shape {shown(list(shape))} does not fill its {end - begin} bytes"
            )
        span = body[begin:end]
        # Writers pad the header, so that numbers are aligned; the format does not ask for it.
        aligned = (8 + length + begin) % type.block_bytes == 0
        tensors[name] = Tensor(name, type, shape, span if aligned else span.copy())
    _check_spans(spans, body.size, path)
    return tensors


def _entry(entry: object, where: str) -> tuple[str, tuple[int, ...], int, int]:
    """Take a tensor's type, shape and span from the header."""
    if not isinstance(entry, dict) or not isinstance(kind := entry.get("dtype"), str):
        raise CheckpointError(f"{where}: expected dtype, shape and data_offsets, found {shown(entry)}")
    shape = _sizes(entry.get("shape"), f"{where}: shape")
    offsets = _sizes(entry.get("data_offsets"), f"{where}: data_offsets")
    if len(shape) > 8 or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{where}: impossible shape or data_offsets, found {shown(entry)}")
    return kind, shape, *offsets


def _sizes(value: Any, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(v) is int and 0 <= v < 2**63 for v in value):
        raise CheckpointError(f"{where}: expected a list of sizes, found {shown(value)}")
    return tuple(value)


def _check_spans(spans: list[tuple[int, int, str]], size: int, path: Path) -> None:
    """Refuse overlaps and gaps."""
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            raise CheckpointError(
                f"{path}: tensor {shown(name)}: expected to begin at byte {position}, found {begin}"
            )
        position = end
    if position != size:
        raise CheckpointError(f"{path}: expected {position} bytes of tensors, found {size}")
