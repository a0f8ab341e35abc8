"""The arithmetic of the benchmark, on a model that takes a known time."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from hotset.measure import speed as module
from hotset.measure.parallel import Parallel, measure_parallel
from hotset.measure.speed import Sizes, measure
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
        made = SimpleNamespace(capacity=capacity, length=0, rewind=lambda length: None, choosers=[])
        made.fork = lambda: made
        return made

    def forward(self, batch):
        tokens = batch.tokens
        kind = len(tokens) > 1
        seconds = 1 + 0.01 * len(tokens)
        self.now += seconds if kind in self.kinds else 2 * seconds
        self.kinds.add(kind)


def clocked(monkeypatch, context=4096):
    transformer = Clocked(context)
    monkeypatch.setattr(module.time, "perf_counter", lambda: transformer.now)
    bandwidths = iter([40.0, 10.0, 50.0])
    backend = SimpleNamespace(memory_bandwidth=lambda nbytes: next(bandwidths))
    tokenizer = SimpleNamespace(encode=lambda text: [1, 2, 3])
    return Model(Path("x.gguf"), transformer, tokenizer, backend, Traffic(2 * 10**9, (), 1, ()))


@pytest.mark.parametrize("context", [4096, 100])
def test_rates(monkeypatch, context):
    model = clocked(monkeypatch, context)
    told = []
    speed = measure(model, progress=lambda done, total: told.append((done, total)))
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
    model = Model(Path("x.gguf"), transformer, tokenizer, backend, Traffic(2 * 10**9, (), 1, ()))
    speed = measure(model)
    assert speed.memory_gb_per_second == pytest.approx(2 / 1.01)
    assert speed.memory_share <= 1
    assert asked == [2 * 10**9] * 3  # as many bytes as a token reads


def test_parts_of_no_tokens_are_left_out(monkeypatch):
    speed = measure(clocked(monkeypatch), Sizes(prompt_tokens=0, tokens=16, repeats=1))
    assert (speed.prefill_tokens, speed.prefill_tokens_per_second) == (0, None)
    assert speed.decode_tokens_per_second == pytest.approx(1 / 1.01)
    speed = measure(clocked(monkeypatch), Sizes(prompt_tokens=32, tokens=0, repeats=2))
    assert speed.prefill_tokens_per_second == pytest.approx(32 / 1.32)
    assert (speed.decode_tokens_per_second, speed.decode_gb_per_second, speed.memory_share) == (None,) * 3


@pytest.mark.parametrize("context", [4096, 100])
def test_sequences_together(monkeypatch, context):
    told = []
    points = measure_parallel(
        clocked(monkeypatch, context), [1, 4], Sizes(), progress=lambda *tale: told.append(tale)
    )
    assert points == [
        Parallel(1, pytest.approx(1 / 1.01), pytest.approx(1010), pytest.approx(1010)),
        Parallel(4, pytest.approx(4 / 1.04), pytest.approx(1040), pytest.approx(1040)),
    ]
    assert told == [(1, 2), (2, 2)]
