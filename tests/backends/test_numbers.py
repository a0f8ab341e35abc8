"""Names and numbers of the native module's enumerations."""

import subprocess
import sys

import pytest

from hotset import _native
from hotset.core.config import Activation, Score, Way
from hotset.formats.tensor import TensorType
from hotset.state.kv_types import KV_TYPES


def test_every_name_has_a_number_of_its_own() -> None:
    assert set(_native.ACTIVATIONS) == {activation.value for activation in Activation}
    assert set(_native.WAYS) == {way.value for way in Way}
    copies = {Score.GATE_Q4, Score.GATE_Q2}
    assert set(_native.SCORES) == {score.value for score in Score if score not in copies} | {"copy", "none"}
    assert set(_native.KV_TYPES) == set(KV_TYPES)
    for table in (
        _native.ACTIVATIONS,
        _native.WAYS,
        _native.SCORES,
        _native.KV_TYPES,
        _native.TENSOR_TYPES,
    ):
        assert len(set(table.values())) == len(table)


def test_tensor_types_are_numbered_as_in_gguf() -> None:
    found = dict(_native.TENSOR_TYPES)
    del found["Q2"]  # which no file has
    assert found == {type.name: int(type) for type in TensorType}


@pytest.mark.parametrize(
    ("table", "name"), [("WAYS", "exact"), ("SCORES", "copy"), ("SCORES", "none"), ("ACTIVATIONS", "silu")]
)
def test_a_name_without_a_number_fails_at_import(table: str, name: str) -> None:
    script = f"from hotset import _native; del _native.{table}[{name!r}]; import hotset.backends.cpu"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert f"KeyError: {name!r}" in done.stderr
