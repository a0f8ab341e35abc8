"""A model small enough to be its own definition: bytes for tokens, logits that depend on all before."""

import codecs
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hotset.core.heads import HeadsConfig, KvShape
from hotset.serve.engine import Engine
from hotset.serve.loaded import Model

END = 256
VOCAB = 257
PADDING = 3  # rows of the model's matrix that belong to no token


class FakeSequence:
    """The tokens themselves; `saved` are the only lengths that it can go back to, None: all."""

    choosers = ()

    def __init__(self, capacity, saved=None):
        self.capacity = capacity
        self.ids = []
        self.saved = saved

    @property
    def length(self):
        return len(self.ids)

    def reusable(self, length):
        assert 0 <= length <= self.length
        if self.saved is None or length == self.length:
            return length
        return max(n for n in (0, *self.saved) if n <= length)

    @property
    def undoable(self):
        return 0 if self.saved is not None else self.capacity - self.length

    def rewind(self, length):
        assert self.reusable(length) == length
        del self.ids[length:]

    def fork(self):
        copy = FakeSequence(self.capacity, self.saved)
        copy.ids = list(self.ids)
        return copy


class FakeTransformer:
    """Answers with `script` after the prompt's end, or with what a hash of all tokens says (never an end)."""

    def __init__(self, script=None):
        self.config = SimpleNamespace(
            vocab_size=VOCAB + PADDING,
            context_length=4096,
            layers=(),
            n_layers=1,
            kv_layers=(0,),
            heads=lambda layer: HeadsConfig(1, 1, 1),
            kv_shape=lambda layer: KvShape(1, 1),  # a position takes four bytes
        )
        self.script = script
        self.calls = []  # rows of each call
        self.spans = []  # of each call (ids before, rows, lossless)
        self.hook = None  # called with the batch before anything is computed
        self.saved = None

    def sequence(self, capacity, kv_type):
        return FakeSequence(capacity, self.saved)

    def forward(self, batch):
        assert batch.tokens.dtype == np.int32
        assert sum(span.count for span in batch.spans) == len(batch.tokens)
        assert len({id(span.sequence) for span in batch.spans}) == len(batch.spans)
        self.calls.append(len(batch.tokens))
        self.spans.append([(s.sequence.length, s.count, s.lossless) for s in batch.spans])
        if self.hook:
            self.hook(batch)
        rows, start = [], 0
        for span in batch.spans:
            ids = span.sequence.ids
            assert 1 <= span.count <= span.sequence.capacity - len(ids)
            for i, token in enumerate(batch.tokens[start : start + span.count].tolist()):
                ids.append(token)
                if i >= span.count - span.logits:
                    rows.append(self.logits(ids))
            start += span.count
        return np.array(rows, np.float32).reshape(len(rows), VOCAB + PADDING)

    def logits(self, ids):
        if self.script is None:
            seed = zlib.crc32(np.array(ids, np.int16).tobytes())
            logits = np.random.default_rng(seed).standard_normal(VOCAB + PADDING).astype(np.float32)
            logits[END] = -9
            return logits
        logits = np.zeros(VOCAB + PADDING, np.float32)
        logits[VOCAB:] = 20
        text = bytes(t for t in ids if t != END).split(b"|")[-1]
        logits[self.script[len(text)] if len(text) < len(self.script) else END] = 10
        return logits


class FakeStream:
    def __init__(self):
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token):
        return self.decoder.decode(bytes([token])) if token != END else ""

    def flush(self):
        return self.decoder.decode(b"", final=True)


class FakeTokenizer:
    end_ids = frozenset({END})
    suppressed = frozenset()
    bos_id = None
    vocab_size = VOCAB

    def encode(self, text):
        return list(text.encode())

    def encode_chat(self, messages, **_variables):
        return self.encode("".join(m["content"] for m in messages) + "|")

    def stream(self):
        return FakeStream()


def build(script=None, context=200, **options):
    transformer = FakeTransformer(script)
    model = Model(Path("fake.gguf"), transformer, FakeTokenizer(), None, 0)
    return Engine(model, context=context, **options)


@pytest.fixture(scope="session")
def make_engine():
    return build


@pytest.fixture(scope="session")
def tokenizer():
    return FakeTokenizer()
