"""Conversations with a model whose predictors are audited: each is as when it is alone."""

import gguf
import numpy as np
import pytest
from helpers.random_checkpoint import by_neuron, random_checkpoint
from numpy.typing import NDArray

from hotset.backends.contract import F32
from hotset.backends.cpu import CpuBackend
from hotset.core.batch import Batch, Sequence, Span
from hotset.core.config import FFNPlan, Score, Way
from hotset.formats.tensor import Tensor, TensorType
from hotset.model.build import build_transformer
from hotset.model.transformer import Transformer

FFN, TOKENS = 200, 160
I32 = NDArray[np.int32]


@pytest.fixture(scope="module", params=[1, 2])
def model(request: pytest.FixtureRequest) -> Transformer:
    """Mostly Q8_0, with cut-offs far from where they should be."""
    checkpoint = random_checkpoint(hidden_size=32, ffn_size=FFN, context_length=256)
    plan = FFNPlan(Way.PREDICTOR, Score.GATE_Q2, 0.8, kept=0.9)
    checkpoint = by_neuron(checkpoint, plan, [np.arange(FFN)] * checkpoint.config.n_layers)
    tensors: dict[str, Tensor] = checkpoint.tensors  # type: ignore[assignment]
    for name, tensor in tensors.items():
        if len(tensor.shape) == 2 and tensor.shape[1] % 32 == 0:
            blocks = gguf.quantize(tensor.to_float32(), gguf.GGMLQuantizationType.Q8_0)
            data = np.ascontiguousarray(blocks).reshape(-1)
            tensors[name] = Tensor(name, TensorType.Q8_0, tensor.shape, data)
    return build_transformer(checkpoint, CpuBackend(threads=request.param))


def tokens(seed: int) -> I32:
    return np.random.default_rng(seed).integers(0, 53, TOKENS).astype(np.int32)


def cutoffs(sequence: Sequence) -> list[float]:
    return [chooser.cutoff for chooser in sequence.choosers if chooser]


def alone(model: Transformer, ids: I32, prompt: int) -> tuple[F32, list[float]]:
    """Logits of every answered token, and the cut-offs at the end."""
    sequence = model.sequence(TOKENS)
    model.forward(Batch.of(sequence, ids[:prompt], lossless=True))
    logits = [model.forward(Batch.of(sequence, ids[i : i + 1])) for i in range(prompt, TOKENS)]
    return np.concatenate(logits), cutoffs(sequence)


def test_two_in_turn_are_each_as_when_alone(model: Transformer) -> None:
    prompts, ids = (40, 60), (tokens(1), tokens(2))
    expected = [alone(model, i, prompt) for i, prompt in zip(ids, prompts, strict=True)]
    pair = [model.sequence(TOKENS), model.sequence(TOKENS)]
    found: list[list[F32]] = [[], []]
    at = [0, 0]
    while min(at) < TOKENS:
        spans, rows = [], []
        for i, sequence in enumerate(pair):
            # The second one begins later, and its prompt is cut in pieces of seven.
            if at[i] == TOKENS or (i == 1 and at[0] < 50):
                continue
            reading = at[i] < prompts[i]
            count = min(40 if i == 0 else 7, prompts[i] - at[i]) if reading else 1
            spans.append(Span(sequence, count, lossless=reading, logits=0 if reading else 1))
            rows.append(ids[i][at[i] : at[i] + count])
        logits = iter(model.forward(Batch(np.concatenate(rows), tuple(spans))))
        for span in spans:
            i = pair.index(span.sequence)
            at[i] += span.count
            if span.logits:
                found[i].append(next(logits)[None])
    for (logits, last), parts, sequence in zip(expected, found, pair, strict=True):
        assert np.array_equal(np.concatenate(parts), logits)
        assert cutoffs(sequence) == last
    assert expected[0][1] != expected[1][1]


def test_forks_and_answers_given_anew(model: Transformer) -> None:
    """A fork that goes on, and a sequence that goes back, equal a conversation from scratch."""
    first, second = tokens(3), tokens(3)
    second[100:] = tokens(4)[100:]
    expected = [alone(model, ids, 30) for ids in (first, second)]
    sequence = model.sequence(TOKENS)
    model.forward(Batch.of(sequence, first[:30], lossless=True))
    for i in range(30, 100):
        model.forward(Batch.of(sequence, first[i : i + 1]))
    fork = sequence.fork()
    for which in (0, 1):  # the same sequence, twice from here
        assert sequence.reusable(100) == 100
        sequence.rewind(100)
        ids, (logits, last) = (first, second)[which], expected[which]
        found = [model.forward(Batch.of(sequence, ids[i : i + 1])) for i in range(100, TOKENS)]
        assert np.array_equal(np.concatenate(found), logits[70:])
        assert cutoffs(sequence) == last
    found = [model.forward(Batch.of(fork, second[i : i + 1])) for i in range(100, TOKENS)]
    assert np.array_equal(np.concatenate(found), expected[1][0][70:])
    assert cutoffs(fork) == expected[1][1]


def test_a_call_that_fails_teaches_nothing(model: Transformer) -> None:
    sequence = model.sequence(TOKENS)
    model.forward(Batch.of(sequence, tokens(5)[:60], lossless=True))
    before = cutoffs(sequence)
    with pytest.raises(Exception, match="token"):
        model.forward(Batch.of(sequence, np.array([1, 2, 999], np.int32), lossless=True))
    assert sequence.length == 60
    assert cutoffs(sequence) == before
