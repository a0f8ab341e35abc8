"""Perplexity and divergence against their definitions, over a model that is a table of next-token logits."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hotset.core.batch import Work
from hotset.core.config import FFNPlan, Way
from hotset.core.errors import RequestError
from hotset.measure import perplexity as module
from hotset.measure.perplexity import evaluate, tokenize
from hotset.serve.loaded import Model

VOCAB = 30


class Table:
    """Logits that depend on the last token and its position in the window."""

    def __init__(self, seed, context=64):
        self.config = SimpleNamespace(vocab_size=VOCAB, context_length=context, layers=())
        self.layers = ()
        self.logits = np.random.default_rng(seed).normal(0, 3, (context, VOCAB, VOCAB)).astype(np.float32)

    def sequence(self, capacity, kv_type):
        return _KV(capacity)

    def forward(self, batch):
        tokens, (span,) = batch.tokens, batch.spans
        kv = span.sequence
        assert kv.length + len(tokens) <= kv.capacity
        rows = self.logits[np.arange(kv.length, kv.length + len(tokens)), tokens]
        kv.length += len(tokens)
        return rows[len(rows) - span.logits :]


class _KV:
    def __init__(self, capacity):
        self.capacity, self.length = capacity, 0

    choosers = ()

    def rewind(self, length):
        self.length = length


def model(seed, bos=None):
    tokenizer = SimpleNamespace(
        bos_id=bos,
        encode=lambda text, add_special=True, parse_special=True: (
            ([] if bos is None else [bos])
            + [ord(c) % VOCAB for c in (text.replace("<s>", "!") if parse_special else text)]
        ),
    )
    return Model(Path(f"{seed}.gguf"), Table(seed), tokenizer, None, 0)


def log_softmax(logits):
    logits = np.float64(logits)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def defined(seed, ids, window, bos):
    """(log-probabilities, target) of every prediction that counts, window by window and token by token."""
    table = Table(seed).logits
    predictions = []
    for start in range(0, len(ids) - window + 1, window):
        tokens = list(ids[start : start + window])
        if bos is not None:
            tokens[0] = bos
        predictions += [
            (log_softmax(table[i, tokens[i]]), tokens[i + 1]) for i in range(window // 2, window - 1)
        ]
    return predictions


def perplexity(predictions):
    return np.exp(-np.mean([logs[target] for logs, target in predictions]))


@pytest.mark.parametrize("bos", [None, 3])
@pytest.mark.parametrize(("length", "window"), [(100, 20), (101, 33), (64, 64), (9, 4)])
@pytest.mark.parametrize("at_once", [1, 7 * VOCAB, 1 << 20])
def test_against_the_definition(monkeypatch, bos, length, window, at_once):
    monkeypatch.setattr(module, "_LOGITS_AT_ONCE", at_once)
    ids = np.random.default_rng(1).integers(0, VOCAB, length).tolist()
    result = evaluate(model(5, bos), ids, against=model(6), window=window)
    own, reference = defined(5, ids, window, bos), defined(6, ids, window, bos)
    assert (result.tokens, result.window) == (len(own), window)
    np.testing.assert_allclose(result.perplexity, perplexity(own), rtol=1e-5)
    kl = [(np.exp(q) * (q - p)).sum() for (p, _), (q, _) in zip(own, reference, strict=True)]
    same = [p.argmax() == q.argmax() for (p, _), (q, _) in zip(own, reference, strict=True)]
    found = result.divergence
    np.testing.assert_allclose(found.reference_perplexity, perplexity(reference), rtol=1e-5)
    np.testing.assert_allclose([found.kl_mean, found.kl_max], [np.mean(kl), np.max(kl)], rtol=1e-4)
    np.testing.assert_allclose(found.top1_agreement, np.mean(same))


def test_a_model_does_not_diverge_from_itself():
    ids = list(range(30)) * 2
    result = evaluate(model(5), ids, against=model(5))
    assert result.window == 60  # a short text is one window
    assert result.divergence.kl_mean == pytest.approx(0, abs=1e-9)
    assert result.divergence.top1_agreement == 1
    assert result.divergence.reference_perplexity == result.perplexity
    assert result.divergence.greedy_same == result.divergence.greedy_tokens == 30
    assert result.density is None


def test_greedy_texts_are_compared_up_to_the_first_difference():
    first, second = model(5), model(5)
    tokens = [1] * 20
    kept = second.transformer.logits
    for position in range(14, 20):  # the fifth token that follows the prompt of ten comes after position 13
        kept[position] = -kept[position]
    divergence = evaluate(first, tokens, against=second, window=20).divergence
    assert (divergence.greedy_tokens, divergence.greedy_same) == (10, 5)


def test_a_model_that_chooses_neurons_is_read_token_by_token(monkeypatch):
    sparse = model(5)
    sparse.config.layers = (SimpleNamespace(ffn=FFNPlan(Way.EXACT)), SimpleNamespace(ffn=None))
    sparse.config.computed_neurons = 8
    lengths, prompts = [], []
    forward = sparse.transformer.forward

    def counted(batch):
        lengths.append(len(batch.tokens))
        prompts.append(batch.spans[0].lossless)
        return forward(batch)

    sparse.transformer.forward = counted

    class Counted:
        @property
        def work(self):
            return Work(lengths.count(1), 2 * lengths.count(1), 0)

    monkeypatch.setattr(_KV, "choosers", (Counted(), None))
    result = evaluate(sparse, [1] * 20, window=20)
    assert lengths == [10, *[1] * 9]
    assert prompts == [True, *[False] * 9]
    assert result.density == pytest.approx(2 / 8)
    against_dense = evaluate(sparse, [1] * 20, against=model(5), window=20)
    assert against_dense.divergence.kl_mean == pytest.approx(0, abs=1e-9)
    assert result.perplexity == pytest.approx(evaluate(model(5), [1] * 20, window=20).perplexity, rel=1e-5)


def test_progress_counts_tokens():
    told = []
    evaluate(model(5), [1] * 50, window=20, progress=lambda done, total: told.append((done, total)))
    assert told == [(20, 40), (40, 40)]


def test_tokenize_takes_the_text_as_the_model_reads_texts():
    assert tokenize("abc", model(1, bos=3)) == [3, 7, 8, 9]
    assert tokenize("abc", model(1, bos=3), limit=2) == [3, 7]
    assert len(tokenize("a<s>b", model(1))) == 5, "a special word in a text is text"
    with pytest.raises(RequestError, match=r"2\.gguf has another vocabulary than 1\.gguf"):
        tokenize("abc", model(1), model(2, bos=3))


@pytest.mark.parametrize(("length", "window"), [(3, None), (0, None), (10, 20), (10, 3), (100, 65)])
def test_too_little_text_or_context_is_refused(length, window):
    with pytest.raises(RequestError, match="expected"):
        evaluate(model(1), [1] * length, window=window)
