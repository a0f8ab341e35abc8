"""The linear kernels of instruction sets that this machine lacks."""

import subprocess

import numpy as np
import pytest
from helpers.other_levels import ALL_LEVELS, RUNNERS, SOURCES, build_runner
from test_linear import dequantise, expected, random_weights

from hotset.backends.codebooks import CODEBOOK_TYPES, entries
from hotset.formats.tensor import TensorType

pytestmark = pytest.mark.slow

SHAPES = [(1, 1, 2), (5, 3, 1), (37, 9, 19)]
"""Rows, blocks of columns, tokens."""


@pytest.fixture(scope="module", params=ALL_LEVELS)
def runner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that runs the level's kernels."""
    sources = [SOURCES / "kernels/linear.cpp", RUNNERS / "linear_runner.cpp"]
    return build_runner(request.param, sources, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("type", TensorType, ids=lambda type: type.name)
def test_products(type: TensorType, runner: list[str]) -> None:
    rng = np.random.default_rng(7)
    request, answers = b"", []
    if type in CODEBOOK_TYPES:
        book = entries(type)
        request = np.array([type, 0, 0, 0, book.nbytes], np.int64).tobytes() + book.tobytes()
    for rows, n_blocks, tokens in SHAPES:
        cols = n_blocks * max(type.block_size, 32)
        data = random_weights(type, rows, cols, rng)
        x = rng.standard_normal((tokens, cols)).astype(np.float32)
        request += np.array([type, rows, cols, tokens, data.nbytes], np.int64).tobytes()
        request += data.tobytes() + x.tobytes()
        answers.append(expected(type, dequantise(type, data, rows), x))
    done = subprocess.run(runner, input=request, capture_output=True, check=True)
    got = np.frombuffer(done.stdout, np.float32)
    for want, tolerance in answers:
        np.testing.assert_array_less(np.abs(got[: want.size].reshape(want.shape) - want), tolerance)
        got = got[want.size :]
    assert got.size == 0
