"""Quantises a model to Q4_0, Q4_1, IQ4_NL, MXFP4 or Q8_0, tensor by tensor.

With calibration text, matrices are rounded as in GPTQ (arXiv 2210.17323): block after block of 32 columns,
and the columns that follow take up the error as far as the inputs' second moments allow. Each block's scale
(and minimum) is searched for the least error that then remains. Without a text it is searched for the least
error of the weights themselves.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hotset import _native
from hotset.activations.moments import F64, input_moments
from hotset.backends.contract import F32
from hotset.core.errors import CheckpointError
from hotset.formats.as_gguf import as_gguf, check_config
from hotset.formats.checkpoint import Checkpoint
from hotset.formats.gguf_model import open_gguf
from hotset.formats.gguf_writer import NewTensor, write_gguf
from hotset.formats.mapped import check_whole
from hotset.formats.output import check_output
from hotset.formats.tensor import Tensor, TensorType
from hotset.formats.tensor_table import split_name

FILE_TYPES = {
    TensorType.Q4_0: 2,
    TensorType.Q4_1: 3,
    TensorType.Q8_0: 7,
    TensorType.IQ4_NL: 25,
    TensorType.MXFP4: 38,
}
"""The types that can be written, and `general.file_type` of such files."""

_BLOCK = 32
_GROUP = 256
_DAMPING = 0.01
_MATRICES = {
    f"{part}.weight"
    for part in (
        *("attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output", "attn_gate"),
        *("attn_q_a", "attn_q_b", "attn_kv_a_mqa"),
        *("ffn_gate", "ffn_up", "ffn_down", "ffn_down_t"),
        *("ffn_gate_exps", "ffn_up_exps", "ffn_gate_up_exps", "ffn_down_exps", "ffn_down_t_exps"),
        *("ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp"),
        *("ssm_in", "ssm_out", "shortconv.in_proj", "shortconv.out_proj"),
    )
}
_EMBEDDINGS = {"token_embd.weight", "per_layer_token_embd.weight"}


def quantise_model(
    checkpoint: Checkpoint,
    out: Path,
    type: TensorType,
    windows: Sequence[NDArray[np.int32]] = (),
    *,
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write a model to `out` as a GGUF file with its matrices as `type`; the size in bytes.

    `windows` are those of a calibration text (`hotset.activations.corpus`). Metadata and names stay; what is
    quantised says `new_type`. `progress(done, total)` counts bytes. Nothing half-written is left, whatever
    happens. Raises `HotsetError` for numbers that are not finite.
    """
    check_output(out, checkpoint.files())
    metadata, tensors = as_gguf(checkpoint)
    output = "output.weight" if "output.weight" in tensors else "token_embd.weight"
    moments = _Moments(input_moments(checkpoint, windows) if windows else iter(()))

    def new(name: str) -> NewTensor:
        tensor = tensors[name]
        kind = new_type(tensor, type, is_output=name == output)
        shape, same = tensor.shape, kind is tensor.type

        def chunks() -> Iterator[NDArray[np.uint8]]:
            tensor = tensors[name]  # some are made at look-up: none is kept
            if same:
                yield tensor.data
                return
            of_inputs = moments.of(name)
            for part in map(tensor.part, range(shape[0])) if len(shape) == 3 else (tensor,):
                yield _quantised(checkpoint, part, kind, of_inputs, threads)

        return NewTensor(name, shape, kind, chunks)

    metadata |= {
        "general.file_type": FILE_TYPES[type],
        "hotset.quantize.source": checkpoint.path.name,
        "hotset.quantize.tokens": sum(map(len, windows)),
    }

    def finish(path: Path) -> None:
        check_whole()
        check_config(checkpoint.config, open_gguf(path).config)

    # In the layers' order, as their moments come.
    order = sorted(tensors, key=lambda name: -1 if (layer := split_name(name)[0]) is None else layer)
    return write_gguf(
        out,
        metadata,
        [new(name) for name in order],
        progress,
        finish,
    )


def new_type(tensor: Tensor, type: TensorType, *, is_output: bool) -> TensorType:
    """What a tensor of a model becomes when that is quantised to `type`.

    Vectors are F32. The matrices of the layers, experts' too, and the token embedding take the type, if their
    rows are whole blocks. The output matrix (where there is none, the embedding) is Q8_0, or stays if that is
    not larger. All else stays: routers, convolutions, position embeddings, predictors, profiles.
    """
    if len(tensor.shape) == 1:
        return TensorType.F32
    part = split_name(tensor.name)[1]
    known = is_output or part in _EMBEDDINGS or part in _MATRICES
    if not known or tensor.shape[-1] % _BLOCK:
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


def _quantised(
    checkpoint: Checkpoint, tensor: Tensor, type: TensorType, moments: F64 | None, threads: int
) -> NDArray[np.uint8]:
    values = tensor.to_float32()
    if not np.isfinite(values).all():
        raise CheckpointError(f"{checkpoint.path}: tensor {tensor.name} has numbers that are not finite")
    if type is TensorType.F32:
        return np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    return quantise(values, type, moments, threads)


class _Moments:
    """The layers' moments, asked for in the layers' order."""

    def __init__(self, layers: Iterator[Mapping[str, F64]]) -> None:
        self._layers = layers
        self._layer = -1
        self._current: Mapping[str, F64] = {}

    def of(self, name: str) -> F64 | None:
        layer, part = split_name(name)
        if layer is None:
            return None
        while self._layer < layer:
            self._layer += 1
            self._current = {}  # let go before the next are made
            self._current = next(self._layers, {})
        return self._current.get(part.removesuffix(".weight"))
