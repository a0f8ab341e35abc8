"""The GPU's latent attention against the reference's."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.latent import latent_sequence, latent_spec
from helpers.recurrent import HIDDEN, go_on, numbers

from hotset.backends.contract import F32, LatentSpec
from hotset.backends.cpu import CpuBackend
from hotset.backends.reference import ReferenceBackend
from hotset.core.config import NormKind
from hotset.core.errors import CheckpointError, HotsetError
from hotset.core.heads import LatentConfig

SHAPES = {
    "odd": (5, LatentConfig(rank=27, rope_dim=6, nope_dim=11, value_dim=7, query_rank=13)),
    "one head": (1, LatentConfig(rank=40, rope_dim=8, nope_dim=3, value_dim=16)),
    "blocks": (3, LatentConfig(rank=64, rope_dim=32, nope_dim=32, value_dim=32, query_rank=32)),
}


def in_pieces(backend: Any, spec: LatentSpec, kv_type: str, x: F32, *cuts: int, capacity: int = 0) -> F32:
    layer = backend.latent_attention(spec)
    sequence = latent_sequence(backend, spec, kv_type, capacity or len(x))
    return np.concatenate(
        [go_on(backend, layer, rows, (sequence, len(rows))) for rows in np.split(x, cuts) if len(rows)]
    )


def assert_close(found: F32, expected: F32, tolerance: float = 2e-5) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize(("name", "kv_type"), [("odd", "f32"), ("one head", "f16")])
def test_a_prompt_in_pieces(backend: Any, name: str, kv_type: str) -> None:
    """Over more keys than a program reads at once, then token by token."""
    spec, x = latent_spec(*SHAPES[name]), numbers(0, 20, HIDDEN)
    if kv_type == "f32":  # pairs that are halves
        spec = replace(spec, rope=replace(spec.rope, interleaved=False))
    found = in_pieces(backend, spec, kv_type, x, 1, 18, 19)
    assert_close(found, in_pieces(ReferenceBackend(), spec, kv_type, x), 2e-5 if kv_type == "f32" else 2e-3)


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_quantised(backend: Any, kv_type: str) -> None:
    """Weights of 4 bits, which the CPU multiplies as codes too; and what is kept in 8."""
    spec, x = latent_spec(*SHAPES["blocks"], quantised=True), numbers(0, 12, HIDDEN)
    found = in_pieces(backend, spec, kv_type, x, 10, 11)
    assert_close(found, in_pieces(CpuBackend(1), spec, kv_type, x), 3e-2)
    assert_close(found, in_pieces(ReferenceBackend(), spec, "f32", x), 3e-2)


def test_split_keys(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most splits have no key; vectors in pieces."""
    monkeypatch.setattr(backend.gpu, "multiprocessors", 8)
    monkeypatch.setattr(backend.gpu, "capability", 75)
    spec, x = latent_spec(2, LatentConfig(200, 6, 11, 7)), numbers(0, 4, HIDDEN)
    found = in_pieces(backend, spec, "f32", x, 3, capacity=400)
    assert_close(found, in_pieces(ReferenceBackend(), spec, "f32", x))


@pytest.mark.parametrize("block_rows", [128, 3])
def test_several_sequences(backend: Any, block_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts and single rows in one call, also cut; one forked, one gone back."""
    monkeypatch.setattr("hotset.backends.gpu.state.BLOCK_ROWS", block_rows)
    spec, reference = latent_spec(*SHAPES["odd"]), ReferenceBackend()
    both = [(backend, backend.latent_attention(spec)), (reference, reference.latent_attention(spec))]
    all_sequences = [[latent_sequence(at, spec, "f32", room) for room in (9, 40, 17)] for at, _ in both]
    for counts in ((4, 1, 2), (1, 5, 1), (1, 1, 2)):
        x = numbers(sum(counts), sum(counts), HIDDEN)
        found, expected = (
            go_on(at, layer, x, *zip(sequences, counts, strict=True))
            for (at, layer), sequences in zip(both, all_sequences, strict=True)
        )
        assert_close(found, expected)
        for sequences in all_sequences:
            sequences[2] = sequences[2].fork()
            sequences[1].rewind(sequences[1].length - 1)


def test_what_is_refused(backend: Any) -> None:
    spec = latent_spec(*SHAPES["odd"])
    with pytest.raises(CheckpointError, match=r"expected shape \[4, 27, 11\], found \[5, 27, 11\]"):
        backend.latent_attention(replace(spec, n_heads=4))
    with pytest.raises(HotsetError, match="expected an RMS norm"):
        backend.latent_attention(replace(spec, kv_norm=replace(spec.kv_norm, kind=NormKind.LAYER)))
