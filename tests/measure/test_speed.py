"""The arithmetic of the benchmark, on a model that takes a known time."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from hotset.measure import speed as module
from hotset.measure.speed import measure
from hotset.model.reading import Traffic
from hotset.serve.loaded import Model


class Clocked:
    """Takes 1 s a call and 10 ms a token, but twice that in its first calls of each kind."""

    def __init__(self, context):
        self.config = SimpleNamespace(vocab_size=10, context_length=context, layers=())
        self.layers = ()
        self.now = 0.0
        self.kinds = set()

    def sequence(self, capacity, kv_type):
        return SimpleNamespace(capacity=capacity, length=0, rewind=lambda length: None, choosers=[])

    def forward(self, batch):
        tokens = batch.tokens
        kind = len(tokens) > 1
        seconds = 1 + 0.01 * len(tokens)
        self.now += seconds if kind in self.kinds else 2 * seconds
        self.kinds.add(kind)


@pytest.mark.parametrize("context", [4096, 100])
def test_rates(monkeypatch, context):
    transformer = Clocked(context)
    monkeypatch.setattr(module.time, "perf_counter", lambda: transformer.now)
    bandwidths = iter([40.0, 10.0, 50.0])
    backend = SimpleNamespace(memory_bandwidth=lambda nbytes: next(bandwidths))
    tokenizer = SimpleNamespace(encode=lambda text: [1, 2, 3])
    model = Model(Path("x.gguf"), transformer, tokenizer, backend, Traffic(2 * 10**9, (), 1))
    told = []
    speed = measure(model, repeats=3, progress=lambda done, total: told.append((done, total)))
    assert (speed.prefill_tokens, speed.decode_tokens) == ((512, 128) if context == 4096 else (100, 92))
    assert speed.prefill_tokens_per_second == pytest.approx(512 / 6.12 if context == 4096 else 50)
    assert speed.decode_tokens_per_second == pytest.approx(1 / 1.01)
    assert speed.decode_gb_per_second == pytest.approx(2 / 1.01)
    assert speed.memory_gb_per_second == 50
    assert speed.memory_share == pytest.approx(2 / 1.01 / 50)
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_decoding_never_reads_faster_than_the_memory(monkeypatch):
    transformer = Clocked(100)
    monkeypatch.setattr(module.time, "perf_counter", lambda: transformer.now)
    asked = []

    def memory_bandwidth(nbytes):
        asked.append(nbytes)
        return 1.5  # a loop slower than decoding

    backend = SimpleNamespace(memory_bandwidth=memory_bandwidth)
    tokenizer = SimpleNamespace(encode=lambda text: [1, 2, 3])
    model = Model(Path("x.gguf"), transformer, tokenizer, backend, Traffic(2 * 10**9, (), 1))
    speed = measure(model)
    assert speed.memory_gb_per_second == pytest.approx(2 / 1.01)
    assert speed.memory_share <= 1
    assert asked == [2 * 10**9] * 3  # as many bytes as a token reads
