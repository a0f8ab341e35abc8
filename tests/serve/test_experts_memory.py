"""Experts within a budget: what is counted, what is refused, and that results stay."""

from pathlib import Path

import numpy as np
import pytest
from helpers.random_gguf import CONTEXT, random_model, write_plain

from hotset.backends.cpu import CpuBackend
from hotset.cli.options import ram_bytes
from hotset.core.batch import Batch
from hotset.core.errors import HotsetError, RequestError
from hotset.core.limits import Memory
from hotset.formats import open_checkpoint
from hotset.formats.checkpoint import Checkpoint
from hotset.model.build import build_transformer
from hotset.model.reading import traffic
from hotset.serve import memory
from hotset.serve.load import load_model
from hotset.serve.memory import check_memory
from hotset.state.kv_types import kv_cache_bytes


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = tmp_path_factory.mktemp("mixture") / "m.gguf"
    return open_checkpoint(write_plain(path, random_model("qwen3moe", hidden=128)))


def test_traffic(mixture: Checkpoint) -> None:
    """A token reads its share of the experts; all of them lie in memory."""
    found = traffic(mixture)
    shape = mixture.config.layers[0].experts
    assert shape
    stacks = sum(t.nbytes for name, t in mixture.tensors.items() if "_exps." in name)
    unread = 0 if "output.weight" not in mixture.tensors else mixture.tensors["token_embd.weight"].nbytes
    everything = sum(t.nbytes for t in mixture.tensors.values()) - unread
    assert found.experts == stacks
    assert found.weights == everything
    assert found.dense == everything - found.idle
    assert found.idle == pytest.approx(stacks * (1 - shape.used / shape.count), abs=mixture.config.n_layers)


def test_needed_memory(mixture: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    read, cache = traffic(mixture), kv_cache_bytes(mixture.config, CONTEXT, "f16")

    def free(nbytes: int) -> None:
        monkeypatch.setattr(memory, "available_memory", lambda: Memory(nbytes, "of this machine"))

    free(read.weights + cache)
    check_memory(mixture, CONTEXT, "f16")
    free(read.weights + cache - 1)
    with pytest.raises(HotsetError, match="or a --ram, which leaves experts in the file"):
        check_memory(mixture, CONTEXT, "f16")
    check_memory(mixture, CONTEXT, "f16", ram=read.experts - 1)
    with pytest.raises(HotsetError, match="or a smaller --ram"):
        check_memory(mixture, CONTEXT, "f16", ram=read.experts)


def test_results_within_a_budget(mixture: Checkpoint) -> None:
    """To the bit, in a prompt and token by token."""
    tokens = np.arange(20, dtype=np.int32) % mixture.config.vocab_size

    def logits(ram: int | None) -> np.ndarray:
        backend = CpuBackend(2, ram=ram)
        transformer = build_transformer(mixture, backend)
        sequence = transformer.sequence(64)
        found = [transformer.forward(Batch.of(sequence, tokens[:12], lossless=True))]
        found += [transformer.forward(Batch.of(sequence, tokens[i : i + 1])) for i in range(12, 20)]
        assert (backend.packed_experts.evictions > 0) == (ram is not None)
        return np.concatenate(found)

    np.testing.assert_array_equal(logits(1).view(np.uint32), logits(None).view(np.uint32))


def test_what_is_no_mixture_has_no_budget(tmp_path: Path) -> None:
    path = write_plain(tmp_path / "m.gguf", random_model("llama"))
    with pytest.raises(RequestError, match=r"^--ram keeps experts in the file: .*m\.gguf is no mixture"):
        load_model(path, ram=1 << 20)


def test_no_budget() -> None:
    with pytest.raises(RequestError, match=r"^--ram is 0"):
        ram_bytes("0")
    assert (ram_bytes(None), ram_bytes("1MiB")) == (None, 1 << 20)
