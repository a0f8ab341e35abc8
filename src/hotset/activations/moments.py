"""What a model's matrices are given to multiply on a text: second moments of their inputs, layer by layer.

The text's windows pass through one layer after the other, in the reference backend's float32 arithmetic, so
that memory holds a single layer besides the hidden vectors.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from hotset.backends.contract import F32, StateShape
from hotset.backends.reference import ReferenceBackend
from hotset.backends.reference.attention import ReferenceAttention
from hotset.backends.reference.backend import ReferenceEmbedding
from hotset.backends.reference.ffn import ReferenceFFN, ReferenceNeuronFFN
from hotset.backends.reference.linear import ReferenceLinear
from hotset.core.batch import Batch
from hotset.core.config import FFNPlan, Way
from hotset.core.errors import HotsetError
from hotset.formats.checkpoint import Checkpoint
from hotset.model.build import attention_spec, embedding_spec, ffn_spec, neuron_ffn_spec

F64 = NDArray[np.float64]
WIDEST = 16384
"""Inputs of more numbers than this get mean squares only: their products would take gigabytes."""

_OUTLIER = 4.0
"""Inputs whose sum of squares is more than so many times the median count as if it were that. A text's first
token may be a thousand times as large as the others (arXiv 2402.17762), and would leave these no weight."""
_FIRST = 64.0
"""A window's first token counts as so many: the others' attention rests on it (arXiv 2309.17453), so that its
errors become theirs. Being one of 512, it would else be what is sacrificed."""


def input_moments(checkpoint: Checkpoint, text: Sequence[NDArray[np.int32]]) -> Iterator[dict[str, F64]]:
    """For each layer in turn, by a matrix's name in it: the weighted mean of x x^T over its inputs x (n,).

    That is (n, n), shrunk towards its diagonal by n over the number of tokens, as the fewer these are, the
    less the products of two columns are to be trusted; where n is over `WIDEST`, the diagonal (n,) alone.
    ``ffn_down_t``, a matrix stored by neuron, has none: its columns are outputs. Raises `HotsetError` where a
    layer gives numbers that are not finite.
    """
    c = checkpoint.config
    embedding = ReferenceEmbedding(embedding_spec(checkpoint))
    hidden = [embedding.forward(tokens, np.arange(len(tokens), dtype=np.int32)) for tokens in text]
    del embedding
    if not c.uniform or c.mixture or c.recurrent:
        raise HotsetError(
            f"{checkpoint.path}: mixtures of experts, and models with recurrent layers or with layers that "
            "differ, cannot be quantised by what their layers read yet: leave out the text"
        )
    shape = StateShape(1, c.n_kv_heads, c.head_dim, (0.0,))
    sequence = ReferenceBackend().sequence(shape, max(map(len, text)), "f32")
    for i in range(c.n_layers):
        attention = ReferenceAttention(attention_spec(checkpoint, i))
        ffn: ReferenceFFN | ReferenceNeuronFFN
        if c.layers[i].ffn is None:
            ffn = ReferenceFFN(ffn_spec(checkpoint, i))
            ffn.down = down = _Recorder(ffn.down)
        else:
            ffn, down = ReferenceNeuronFFN(neuron_ffn_spec(checkpoint, i, FFNPlan(Way.DENSE))), None
        attention.q = query = _Recorder(attention.q)
        attention.output = output = _Recorder(attention.output)
        ffn.hidden.up = up = _Recorder(ffn.hidden.up)
        with np.errstate(over="ignore", invalid="ignore"):  # which is looked for below
            for x in hidden:
                out = x.copy() if c.parallel else x
                batch = Batch.of(sequence, np.zeros(len(x), np.int32), lossless=True)
                attention.forward(x, out, batch)
                ffn.forward(x, out, batch)
                x[:] = out
        if not all(np.isfinite(x).all() for x in hidden):
            raise HotsetError(
                f"{checkpoint.path}: layer {i} computes numbers that are not finite from the text: its "
                "weights are damaged, or too large"
            )
        moments = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_qkv"), query.moments())
        moments |= dict.fromkeys(("ffn_gate", "ffn_up"), up.moments())
        moments["attn_output"] = output.moments()
        if down:
            moments["ffn_down"] = down.moments()
        yield moments


class _Recorder(ReferenceLinear):
    """A matrix that adds up what it is given; each call is a window."""

    def __init__(self, linear: ReferenceLinear) -> None:
        self.weight, self.bias = linear.weight, linear.bias
        size = linear.weight.shape[1]
        self._total: F64 = np.zeros((size, size) if size <= WIDEST else size)
        self._tokens = 0

    def __call__(self, x: F32) -> F32:
        sizes = (x * x).sum(axis=1, keepdims=True)
        limit = _OUTLIER * np.median(sizes)
        kept = x * np.sqrt(limit / np.maximum(sizes, max(limit, 1e-30)))
        kept[0] *= _FIRST**0.5
        self._total += kept.T @ kept if self._total.ndim == 2 else (kept * kept).sum(axis=0)
        self._tokens += len(x)
        return super().__call__(x)

    def moments(self) -> F64:
        mean = self._total / self._tokens
        if mean.ndim == 2:
            diagonal = mean.diagonal().copy()
            mean *= 1 - min(0.5, len(mean) / self._tokens)
            np.fill_diagonal(mean, diagonal)
        return mean
