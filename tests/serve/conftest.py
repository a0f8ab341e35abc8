"""A model small enough to be its own definition: bytes for tokens, logits that depend on all before."""

import codecs
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hotset.serve.engine import Engine
from hotset.serve.loaded import Model

END = 256
VOCAB = 257
PADDING = 3  # rows of the model's matrix that belong to no token


class FakeKV:
    def __init__(self, capacity):
        self.capacity = capacity
        self.ids = []

    @property
    def length(self):
        return len(self.ids)

    def reusable(self, length):
        return min(length, self.length)

    def advance(self, count):
        raise AssertionError("the transformer advances")

    def rewind(self, length):
        assert 0 <= length <= self.length
        del self.ids[length:]


class FakeTransformer:
    """Answers with `script` after the prompt's end, or with whatever a hash of all tokens says."""

    def __init__(self, script=None):
        self.config = SimpleNamespace(vocab_size=VOCAB + PADDING, context_length=4096)
        self.script = script
        self.calls = []
        self.prompts = []
        self.fail_after = None

    def forward(self, batch):
        tokens, (span,) = batch.tokens, batch.spans
        kv, prompt = span.sequence, span.lossless
        assert tokens.dtype == np.int32
        assert 1 <= len(tokens) <= kv.capacity - kv.length
        self.calls.append(len(tokens))
        self.prompts.append(prompt)
        if self.fail_after is not None and len(self.calls) > self.fail_after:
            kv.ids += tokens[: len(tokens) // 2].tolist()  # a slice of a long prompt got through
            raise KeyboardInterrupt
        kv.ids += tokens.tolist()
        if self.script is not None:
            logits = np.zeros(VOCAB + PADDING, np.float32)
            logits[VOCAB:] = 20
            text = bytes(t for t in kv.ids if t != END).split(b"|")[-1]
            logits[self.script[len(text)] if len(text) < len(self.script) else END] = 10
            return logits[None]
        return np.random.default_rng(kv.ids).standard_normal((1, VOCAB + PADDING)).astype(np.float32)


class FakeStream:
    def __init__(self):
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token):
        return self.decoder.decode(bytes([token])) if token != END else ""

    def flush(self):
        return self.decoder.decode(b"", final=True)


class FakeTokenizer:
    end_ids = frozenset({END})
    bos_id = None
    vocab_size = VOCAB

    def encode(self, text):
        return list(text.encode())

    def encode_chat(self, messages, **_variables):
        return self.encode("".join(m["content"] for m in messages) + "|")

    def stream(self):
        return FakeStream()


def build(script=None, context=200):
    transformer = FakeTransformer(script)
    model = Model(Path("fake.gguf"), transformer, FakeTokenizer(), None, 0)
    return Engine(model, FakeKV(context))


@pytest.fixture(scope="session")
def make_engine():
    return build
