"""Every architecture and option against `transformers`, on tiny random weights.

Logits must agree within 1e-4 of the largest logit: ``max |a - b| <= 1e-4 max |b|`` over all positions.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.parity import LENGTH, TOKENS, Peer, assert_close, run_peer
from helpers.tiny_models import save, tiny_models, write_old_config
from numpy.typing import NDArray

from hotset.backends.building import Backend
from hotset.backends.reference import ReferenceBackend
from hotset.core.batch import Batch, Sequence
from hotset.formats import open_checkpoint
from hotset.model.build import build_transformer


@pytest.mark.parametrize("name", tiny_models())
def test_logits(name: str, peers: Callable[..., Peer], backend: Backend) -> None:
    """At once, token by token, after a prefix, and after going back."""
    peer = peers(name)
    model = build_transformer(open_checkpoint(peer.path), backend)

    def forward(kv: Sequence, start: int, stop: int) -> NDArray[np.float32]:
        return model.forward(Batch.of(kv, TOKENS[start:stop], logits=None))

    at_once = model.sequence(LENGTH, "f32")
    assert_close(forward(at_once, 0, LENGTH), peer.logits)
    assert at_once.length == LENGTH

    by_token = model.sequence(LENGTH, "f32")
    assert_close(np.concatenate([forward(by_token, i, i + 1) for i in range(LENGTH)]), peer.logits)

    prefix = model.sequence(LENGTH, "f32")
    forward(prefix, 0, 11)
    prefix.save()
    last = model.forward(Batch.of(prefix, TOKENS[11:17]))
    assert_close(last, peer.logits[16:17])
    assert_close(forward(prefix, 17, LENGTH), peer.logits[17:])

    prefix.rewind(11)
    assert prefix.length == 11
    assert_close(forward(prefix, 11, 12), peer.logits[11:12])
    assert_close(forward(prefix, 12, LENGTH), peer.logits[12:])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["llama-silu", "falcon-40b"])
def test_half_precision(name: str, dtype: str, peers: Callable[..., Peer], backend: Backend) -> None:
    """Weights of two bytes are used as they are: nothing is lost against the same numbers in F32."""
    peer = peers(name, dtype)
    model = build_transformer(open_checkpoint(peer.path), backend)
    logits = model.forward(Batch.of(model.sequence(LENGTH, "f32"), TOKENS, logits=None))
    assert_close(logits, peer.logits)


@pytest.mark.parametrize(
    "name", ["llama-rope-llama3", "llama-rope-linear", "llama-rope-yarn", "gemma3", "falcon-7b", "minitron"]
)
def test_old_config(name: str, tmp_path: Path) -> None:
    peer = tiny_models()[name]()
    save(peer, tmp_path)
    write_old_config(tmp_path)
    model = build_transformer(open_checkpoint(tmp_path), ReferenceBackend())
    logits = model.forward(Batch.of(model.sequence(LENGTH, "f32"), TOKENS, logits=None))
    assert_close(logits, run_peer(peer))
