"""The kernels over neurons of instruction sets that this machine lacks."""

import subprocess

import numpy as np
import pytest
from helpers.other_levels import ALL_LEVELS, RUNNERS, SOURCES, build_runner
from test_linear import dequantise, quantise_activations, random_weights

from hotset.formats.tensor import TensorType

pytestmark = pytest.mark.slow

TYPES = [TensorType.F16, TensorType.Q8_0, TensorType.Q4_0, TensorType.Q4_1]
SHAPES = [(1, 1, 1, 1), (9, 3, 1, 5), (70, 19, 3, 33), (37, 32, 8, 37)]
"""Neurons, blocks of columns, tokens, listed neurons."""


@pytest.fixture(scope="module", params=ALL_LEVELS)
def runner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that runs the level's kernels."""
    sources = [SOURCES / "kernels/neurons.cpp", RUNNERS / "neuron_runner.cpp"]
    return build_runner(request.param, sources, tmp_path_factory.mktemp(request.param))


def rounding_of_values(type: TensorType, rows: np.ndarray, h: np.ndarray) -> np.ndarray:
    """How far sums (tokens, 1) of quantised rows may be off: a value times a scale has sixteen bits,
    in units that the largest of at most eight neurons sets; here the bound is that of all."""
    if type is TensorType.F16:
        return np.zeros((len(h), 1))
    blocks = rows.reshape(len(rows), -1, type.block_bytes)
    scales = np.abs(np.ascontiguousarray(blocks[:, :, :2]).view(np.float16)[..., 0].astype(np.float64))
    unit = (np.abs(h) * scales.max(axis=1)).max(axis=1) / 0x7FFF
    return unit[:, None] / 2 * len(rows) * {TensorType.Q8_0: 128, TensorType.Q4_0: 8}.get(type, 15)


@pytest.mark.parametrize("type", TYPES, ids=lambda type: type.name)
def test_sums_over_lists_of_neurons(type: TensorType, runner: list[str]) -> None:
    rng = np.random.default_rng(11)
    request, answers = b"", []
    for neurons, n_blocks, tokens, count in SHAPES:
        cols = 32 * n_blocks
        gate, down = (random_weights(type, neurons, cols, rng) for _ in range(2))
        x, h, all_h = (rng.standard_normal((tokens, n)).astype(np.float32) for n in (cols, count, neurons))
        rows = np.sort(rng.permutation(neurons)[:count]).astype(np.int32)
        header = np.array([type, neurons, cols, tokens, count, gate.nbytes], np.int64)
        parts = (header, gate, down, x, h, rows, all_h)
        request += b"".join(part.tobytes() for part in parts)

        seen = x.astype(np.float64) if type is TensorType.F16 else quantise_activations(x)
        w, v = dequantise(type, gate, neurons)[rows], dequantise(type, down, neurons)
        # Codes and minima or offsets are summed apart, so that larger numbers cancel.
        slack = 1 if type in (TensorType.F16, TensorType.Q8_0) else 16
        rounding = rounding_of_values(type, down.reshape(neurons, -1)[rows], h)
        for a, b, more in (
            (seen, w.T, 0.0),
            (h.astype(np.float64), v[rows], rounding),
            (all_h.astype(np.float64), v, 0.0),
        ):
            answers.append((a @ b, 4e-7 * slack * (np.abs(a) @ np.abs(b)) + more + 1e-30))
        answers.append(np.flatnonzero(np.abs(all_h[0]) >= 0.5))
    got = subprocess.run(runner, input=request, capture_output=True, check=True).stdout
    for answer in answers:
        if isinstance(answer, tuple):
            want, tolerance = answer
            found = np.frombuffer(got, np.float32, want.size).reshape(want.shape)
            np.testing.assert_array_less(np.abs(found - want), tolerance)
            got = got[found.nbytes :]
        else:
            size = int(np.frombuffer(got, np.int64, 1)[0])
            np.testing.assert_array_equal(np.frombuffer(got, np.int32, size, 8), answer)
            got = got[8 + 4 * size :]
    assert got == b""
