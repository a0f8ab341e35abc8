"""What a model's matrices are given to multiply on a text: second moments of their inputs, layer by layer.

The text's windows pass through one layer after the other, in the reference backend's float32 arithmetic, so
that memory holds a single layer besides the hidden vectors.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from hotset.backends.base import F32
from hotset.backends.reference import (
    ReferenceAttention,
    ReferenceEmbedding,
    ReferenceFFN,
    ReferenceKVCache,
    ReferenceLinear,
    ReferenceNeuronFFN,
)
from hotset.config import FFNPlan, Way
from hotset.errors import RequestError
from hotset.formats.checkpoint import Checkpoint
from hotset.model.build import Weights
from hotset.tokenizer import Tokenizer

F64 = NDArray[np.float64]
WINDOW = 512
"""Tokens that are read together, each window from an empty context."""
LEAST = 128
"""Tokens below which a text says too little."""
WIDEST = 16384
"""Inputs of more numbers than this get mean squares only: their products would take gigabytes."""


def windows(checkpoint: Checkpoint, text: str, limit: int | None = None) -> list[NDArray[np.int32]]:
    """The text's first `limit` tokens in windows, each opened as the model's texts are.

    Raises `RequestError` for a text of fewer than `LEAST` tokens.
    """
    tokenizer = Tokenizer.from_checkpoint(checkpoint)
    ids = list(tokenizer.encode(text, add_special=True))[:limit]
    if len(ids) < LEAST:
        raise RequestError(f"the text has {len(ids)} tokens: expected at least {LEAST} (--text, --tokens)")
    size = min(WINDOW, checkpoint.config.context_length)
    cut = [np.array(ids[start : start + size], np.int32) for start in range(0, len(ids), size)]
    if ids[0] == tokenizer.bos_id:
        for window in cut:
            window[0] = ids[0]
    return cut


def input_moments(checkpoint: Checkpoint, text: Sequence[NDArray[np.int32]]) -> Iterator[dict[str, F64]]:
    """For each layer in turn, by a matrix's name in the layer: the mean of x x^T over its inputs x (n,).

    That is (n, n), or the diagonal (n,) alone where n is over `WIDEST`. Matrices that multiply the rows of
    others' (``ffn_down_t``) have none.
    """
    c = checkpoint.config
    weights = Weights(checkpoint)
    embedding = ReferenceEmbedding(weights.embedding())
    hidden = [embedding.forward(tokens, 0) for tokens in text]
    del embedding
    kv = ReferenceKVCache((1, max(map(len, text)), c.n_kv_heads, c.head_dim), np.float32)
    count = sum(map(len, text))
    for i in range(c.n_layers):
        attention = ReferenceAttention(weights.attention(i))
        ffn: ReferenceFFN | ReferenceNeuronFFN
        if c.layers[i].ffn is None:
            ffn = ReferenceFFN(weights.ffn(i))
            ffn.down = down = _Recorder(ffn.down)
        else:
            ffn, down = ReferenceNeuronFFN(weights.neuron_ffn(i, FFNPlan(Way.DENSE))), None
        attention.q = query = _Recorder(attention.q)
        attention.output = output = _Recorder(attention.output)
        ffn.hidden.up = up = _Recorder(ffn.hidden.up)
        for x in hidden:
            out = x.copy() if c.parallel else x
            kv.truncate(0)
            attention.forward(x, out, kv, 0)
            ffn.forward(x, out)
            x[:] = out
        moments = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_qkv"), query.total / count)
        moments |= dict.fromkeys(("ffn_gate", "ffn_up"), up.total / count)
        moments["attn_output"] = output.total / count
        if down:
            moments["ffn_down"] = down.total / count
        yield moments


class _Recorder(ReferenceLinear):
    """A matrix that adds up what it is given."""

    def __init__(self, linear: ReferenceLinear) -> None:
        self.weight, self.bias = linear.weight, linear.bias
        size = linear.weight.shape[1]
        self.total: F64 = np.zeros((size, size) if size <= WIDEST else size)

    def __call__(self, x: F32) -> F32:
        self.total += x.T @ x if self.total.ndim == 2 else (x * x).sum(axis=0)
        return super().__call__(x)
