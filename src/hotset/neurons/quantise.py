"""Quantises a GGUF model to Q4_0, Q4_1 or Q8_0, tensor by tensor.

With calibration text, matrices are rounded as in GPTQ (arXiv 2210.17323): block by block of 32 columns, and the
columns that follow take up the error as far as the inputs' second moments allow. Each block's scale (and
minimum) is searched for the least error that then remains. Without a text it is searched for the least error
of the weights themselves.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hotset import _native
from hotset.errors import CheckpointError
from hotset.formats import Checkpoint, Tensor, TensorType
from hotset.formats.gguf_file import read_gguf
from hotset.formats.gguf_writer import NewTensor, same_metadata, same_tensor, write_gguf
from hotset.neurons.calibration import F64, input_moments

F32 = NDArray[np.float32]
FILE_TYPES = {TensorType.Q4_0: 2, TensorType.Q4_1: 3, TensorType.Q8_0: 7}
"""The types that can be written, and `general.file_type` of such files."""

_BLOCK = 32
_GROUP = 256
_DAMPING = 0.01
_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.weight")
_PARTS = (
    "attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "ffn_down_t"
)  # fmt: skip


def quantise_file(
    checkpoint: Checkpoint,
    target: Path,
    type: TensorType,
    text: Sequence[NDArray[np.int32]] = (),
    *,
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write the GGUF model `checkpoint` to `target` with its matrices as `type`; the size in bytes.

    `text` is calibration text as `calibration.windows` cuts it. Metadata and names are kept; see `new_type` for what is
    quantised. Raises `CheckpointError` for other files, or numbers that are not finite.
    """
    if checkpoint.path.is_dir():
        raise CheckpointError(f"{checkpoint.path}: expected a GGUF file; convert the directory to GGUF first")
    file = read_gguf(checkpoint.path)
    if file.powerinfer:
        raise CheckpointError(f"{checkpoint.path}: a PowerInfer file; make it a GGUF first (hotset convert)")
    moments = _Moments(input_moments(checkpoint, text) if text else iter(()))
    output = "output.weight" if "output.weight" in file.tensors else "token_embd.weight"

    def new(tensor: Tensor) -> NewTensor:
        kind = new_type(tensor, type, is_output=tensor.name == output)
        if kind is tensor.type:
            return same_tensor(tensor)

        def chunks() -> Iterator[NDArray[np.uint8]]:
            values = tensor.to_float32()
            if not np.isfinite(values).all():
                raise CheckpointError(f"{checkpoint.path}: tensor {tensor.name} has numbers that are not finite")
            if kind is TensorType.F32:
                yield np.ascontiguousarray(values).reshape(-1).view(np.uint8)
            else:
                yield quantise(values, kind, moments.of(tensor.name), threads)

        return NewTensor(tensor.name, tensor.shape, kind, chunks)

    metadata = same_metadata(file.metadata) | {
        "general.file_type": FILE_TYPES[type],
        "general.quantization_version": 2,
        "hotset.quantize.tokens": sum(map(len, text)),
    }
    tensors = [new(tensor) for tensor in sorted(file.tensors.values(), key=_layer)]
    return write_gguf(target, metadata, tensors, progress)


def new_type(tensor: Tensor, type: TensorType, *, is_output: bool) -> TensorType:
    """What a tensor of a model becomes when that is quantised to `type`.

    Vectors are F32. The matrices of the layers and the token embedding take the type, if their rows are whole
    blocks. The output matrix, be it the embedding, is Q8_0, or stays as it is if that is smaller. The rest stays.
    """
    if len(tensor.shape) == 1:
        return TensorType.F32
    layer = _LAYER.fullmatch(tensor.name)
    known = layer[2] in _PARTS if layer else is_output or tensor.name == "token_embd.weight"
    if len(tensor.shape) != 2 or not known or tensor.shape[1] % _BLOCK:
        return tensor.type
    if not is_output:
        return type
    small = tensor.nbytes * _BLOCK <= TensorType.Q8_0.block_bytes * tensor.shape[0] * tensor.shape[1]
    return tensor.type if small else TensorType.Q8_0


def quantise(
    weights: F32, type: TensorType, moments: F64 | None = None, threads: int = 1
) -> NDArray[np.uint8]:
    """Quantise a matrix (rows, cols), cols a multiple of 32, to the bytes of `type`.

    `moments` are the inputs' second moments (cols, cols), their mean squares (cols,), or None: all alike.
    """
    rows, cols = weights.shape
    if moments is None or moments.ndim == 1:
        out = np.empty(rows * cols // _BLOCK * type.block_bytes, np.uint8)
        importance = None if moments is None else moments.astype(np.float32)
        _native.quantise(int(type), np.ascontiguousarray(weights), importance, out, threads)
        return out
    factor = _inverse_factor(moments)
    rest = weights.copy()
    blocks = np.empty((cols // _BLOCK, rows, type.block_bytes), np.uint8)
    for group in range(0, cols, _GROUP):
        end = min(group + _GROUP, cols)
        errors = np.empty((rows, end - group), np.float32)
        for start in range(group, end, _BLOCK):
            own = slice(start, start + _BLOCK)
            slab = np.ascontiguousarray(rest[:, own])
            out = blocks[start // _BLOCK].reshape(-1)
            _native.quantise_slab(int(type), slab, np.ascontiguousarray(factor[own, own]), out, threads)
            rest[:, own.stop : end] -= slab @ factor[own, own.stop : end]
            errors[:, start - group : own.stop - group] = slab
        rest[:, end:] -= errors @ factor[group:end, end:]  # the later columns, many at a time
    return np.ascontiguousarray(blocks.transpose(1, 0, 2)).reshape(-1)


def _inverse_factor(moments: F64) -> F32:
    """The upper U with U^T U the inverse of `moments`, these damped."""
    damped = moments + _DAMPING * max(moments.diagonal().mean(), 1e-30) * np.eye(len(moments))
    lower = np.linalg.cholesky(damped[::-1, ::-1])
    return _inverse(lower[::-1, ::-1]).astype(np.float32)


def _inverse(upper: F64) -> F64:
    """The inverse of an upper triangular matrix, by halves."""
    size = len(upper)
    if size <= 64:
        return np.triu(np.linalg.inv(upper))
    half = size // 2
    first, last = _inverse(upper[:half, :half]), _inverse(upper[half:, half:])
    inverse = np.zeros_like(upper)
    inverse[:half, :half], inverse[half:, half:] = first, last
    inverse[:half, half:] = -first @ upper[:half, half:] @ last
    return inverse


def _layer(tensor: Tensor) -> int:
    found = _LAYER.match(tensor.name) or re.match(r"blk\.(\d+)\.", tensor.name)
    return int(found[1]) if found else -1


class _Moments:
    """The layers' moments, asked for in the layers' order."""

    def __init__(self, layers: Iterator[Mapping[str, F64]]) -> None:
        self._layers = enumerate(layers)
        self._layer, self._current = -1, dict[str, F64]()

    def of(self, name: str) -> F64 | None:
        found = _LAYER.fullmatch(name)
        if not found:
            return None
        while self._layer < int(found[1]):
            try:
                self._layer, self._current = next(self._layers)
            except StopIteration:
                return None
        return self._current.get(found[2])
