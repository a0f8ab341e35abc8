"""The CPU's latent attention: the reference's numbers, and the same bits in any cut of a prompt."""

from typing import Any

import numpy as np
import pytest
from helpers.latent import latent_sequence, latent_spec
from helpers.recurrent import HIDDEN, go_on, numbers
from hypothesis import given, settings
from hypothesis import strategies as st

from hotset.backends.contract import F32, LatentSpec, StateShape
from hotset.backends.cpu import CpuBackend
from hotset.backends.reference import ReferenceBackend
from hotset.core.batch import Sequence
from hotset.core.errors import HotsetError
from hotset.core.heads import LatentConfig

POSITIONS = 290
SHAPES = {
    "odd": (5, LatentConfig(rank=27, rope_dim=6, nope_dim=11, value_dim=7, query_rank=13)),
    "blocks": (20, LatentConfig(rank=64, rope_dim=32, nope_dim=96, value_dim=32)),
    "one head": (1, LatentConfig(rank=96, rope_dim=32, nope_dim=32, value_dim=64, query_rank=32)),
    "many heads": (70, LatentConfig(rank=32, rope_dim=32, nope_dim=32, value_dim=4)),
}


@pytest.fixture(scope="module", params=CpuBackend.levels())
def level(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def spec_of(name: str, quantised: bool = False) -> LatentSpec:
    return latent_spec(*SHAPES[name], quantised)


def new_sequence(backend: Any, spec: LatentSpec, kv_type: str) -> Sequence:
    return latent_sequence(backend, spec, kv_type, POSITIONS)


def whole(backend: Any, spec: LatentSpec, kv_type: str, x: F32) -> F32:
    return go_on(backend, backend.latent_attention(spec), x, (new_sequence(backend, spec, kv_type), len(x)))


@pytest.mark.parametrize("kv_type", ["f32", "f16"])
@pytest.mark.parametrize("name", SHAPES)
def test_reference(level: str, name: str, kv_type: str) -> None:
    """Absorbed, the same as with every head's own keys and values."""
    spec, x = spec_of(name), numbers(0, POSITIONS, HIDDEN)
    found, expected = (whole(b, spec, kv_type, x) for b in (CpuBackend(2, level), ReferenceBackend()))
    tolerance = 2e-5 if kv_type == "f32" else 2e-3
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def test_eight_bits(level: str) -> None:
    """What is kept in 8 bits; a size that is no whole blocks is refused."""
    spec, x = spec_of("blocks"), numbers(0, POSITIONS, HIDDEN)
    backend = CpuBackend(2, level)
    found, expected = whole(backend, spec, "q8_0", x), whole(backend, spec, "f32", x)
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert 0 < error < 0.03
    with pytest.raises(HotsetError, match="multiple of 32 numbers, found 33; use f16"):
        new_sequence(backend, spec_of("odd"), "q8_0")


@given(
    cuts=st.lists(st.sampled_from((1, 2, 3, 16, 17, 33, 64, 130)), max_size=12),
    threads=st.sampled_from((1, 2, 5)),
    kv_type=st.sampled_from(("f32", "f16", "q8_0")),
    neighbours=st.booleans(),
    name=st.sampled_from(sorted(SHAPES)),
)
@settings(max_examples=16, deadline=None)
def test_any_cut(
    level: str, cuts: list[int], threads: int, kv_type: str, neighbours: bool, name: str
) -> None:
    """Alone or beside another sequence's rows, with any number of threads, in a fork from halfway on."""
    spec, x = spec_of(name, quantised=True), numbers(0, POSITIONS, HIDDEN)
    kv_type = kv_type if spec.shape.kept % 32 == 0 else "f16"
    expected = whole(CpuBackend(1, level), spec, kv_type, x)
    backend = CpuBackend(threads, level)
    layer = backend.latent_attention(spec)
    sequence = new_sequence(backend, spec, kv_type)
    beside = new_sequence(backend, spec, kv_type)
    found: list[F32] = []
    for cut in [*cuts, POSITIONS]:
        start = sequence.length
        rows = x[start : start + cut]
        if not len(rows):
            break
        also = min(cut, POSITIONS - beside.length) if neighbours else 0
        spans = [(sequence, len(rows)), (beside, also)] if also else [(sequence, len(rows))]
        found.append(
            go_on(backend, layer, np.concatenate([rows, numbers(1, also, HIDDEN)]), *spans)[: len(rows)]
        )
        if len(found) == 2:
            sequence = sequence.fork()
    np.testing.assert_array_equal(np.concatenate(found).view(np.uint32), expected.view(np.uint32))


def test_rewinds(level: str) -> None:
    spec, x = spec_of("odd"), numbers(0, POSITIONS, HIDDEN)
    backend = CpuBackend(2, level)
    layer, sequence = backend.latent_attention(spec), new_sequence(backend, spec, "f16")
    expected = go_on(backend, layer, x[:200], (sequence, 200))
    go_on(backend, layer, numbers(3, 50, HIDDEN), (sequence, 50))
    sequence.rewind(130)
    np.testing.assert_array_equal(go_on(backend, layer, x[130:200], (sequence, 70)), expected[130:])


def test_another_models_sequence_is_refused() -> None:
    spec, backend = spec_of("odd"), CpuBackend(1)
    other: Sequence = backend.sequence(StateShape(1, 1, spec.shape.kept), POSITIONS, "f16")
    with pytest.raises(ValueError, match="another model's"):
        go_on(backend, backend.latent_attention(spec), numbers(0, 2, HIDDEN), (other, 2))
