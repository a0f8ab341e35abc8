"""PowerInfer's files, as its converter writes them, against plain GGUF files of the same weights."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Q
from helpers.parity import assert_close
from helpers.random_gguf import (
    F32,
    FFN,
    TOKENS,
    RandomModel,
    plain_twin,
    random_model,
    read_by_library,
    write_plain,
    write_powerinfer,
)
from numpy.typing import NDArray

from hotset.backends.building import Backend
from hotset.backends.cpu import CpuBackend
from hotset.backends.reference import ReferenceBackend
from hotset.core.batch import Batch
from hotset.formats import open_checkpoint
from hotset.model.build import build_transformer

LAYOUTS: dict[str, Callable[[], RandomModel]] = {
    "llama": lambda: random_model("llama", activation="relu"),
    "bamboo": lambda: random_model("bamboo"),
    "falcon-7b": lambda: random_model("falcon", activation="relu"),
    "falcon-40b": lambda: random_model("falcon", two_norms=True, activation="relu"),
    "opt": lambda: random_model("opt"),
}
EVERY_NEURON = -1e9
REFERENCE = ReferenceBackend()
BACKENDS = {"reference": REFERENCE, "cpu": CpuBackend(threads=2)}


def some_predictor(layer: int, hidden: int = 64) -> tuple[F32, F32]:
    """A random low-rank predictor; each layer has its own width."""
    rng = np.random.default_rng(layer)
    width = 32 * (layer + 1)
    fc1 = rng.standard_normal((width, hidden)) / hidden**0.5
    return fc1.astype(np.float32), rng.standard_normal((FFN, width)).astype(np.float32)


def decode(path: Path, backend: Backend = REFERENCE) -> NDArray[np.float32]:
    """Logits after each token, read one by one."""
    model = build_transformer(open_checkpoint(path), backend)
    kv = model.sequence(len(TOKENS), "f32")
    return np.concatenate([model.forward(Batch.of(kv, token)) for token in TOKENS[:, None]])


def greedy(path: Path, backend: Backend = REFERENCE, length: int = 24) -> list[int]:
    model = build_transformer(open_checkpoint(path), backend)
    kv = model.sequence(length + 2, "f32")
    tokens = TOKENS[:1]
    text = []
    for _ in range(length):
        tokens = model.forward(Batch.of(kv, tokens)).argmax(axis=1).astype(np.int32)
        text.append(int(tokens[0]))
    return text


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    return BACKENDS[request.param]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_f16_equals_the_plain_file(layout: str, backend: Backend, tmp_path: Path) -> None:
    model = LAYOUTS[layout]()
    plain = write_plain(tmp_path / "plain.gguf", model)
    file = write_powerinfer(
        tmp_path / "p.powerinfer.gguf", model, predictor=some_predictor, threshold=EVERY_NEURON
    )
    assert_close(decode(file, backend), decode(plain), 1e-4)
    assert greedy(file, backend) == greedy(plain, backend)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("predictor_kind", [Q.Q4_0, Q.Q5_0], ids=lambda kind: kind.name)
def test_q4_0_equals_the_plain_file_of_its_numbers(
    layout: str, predictor_kind: Q, backend: Backend, tmp_path: Path
) -> None:
    """The twin is not in Q4_0: its down would be rounded along the other axis.

    The CPU's integer products round the activations to 8 bits.
    """
    model = LAYOUTS[layout]()
    file = write_powerinfer(
        tmp_path / "p.gguf",
        model,
        Q.Q4_0,
        predictor=some_predictor,
        threshold=EVERY_NEURON,
        predictor_kind=predictor_kind,
    )
    assert open_checkpoint(file).tensors["blk.1.fc2.weight"].type == predictor_kind
    twin = plain_twin(file, model, tmp_path / "twin.gguf")
    assert_close(decode(file, backend), decode(twin), 1e-5 if backend is REFERENCE else 0.05)


def test_output_in_q6_k(tmp_path: Path) -> None:
    model = random_model("llama", activation="relu", hidden=256)
    file = write_powerinfer(
        tmp_path / "p.gguf",
        model,
        Q.Q4_0,
        predictor=lambda layer: some_predictor(layer, 256),
        threshold=EVERY_NEURON,
        output_kind=Q.Q6_K,
    )
    assert open_checkpoint(file).tensors["output.weight"].type == Q.Q6_K
    assert_close(decode(file), decode(plain_twin(file, model, tmp_path / "twin.gguf")), 1e-5)


@pytest.mark.parametrize("layout", ["llama", "bamboo", "falcon-40b", "opt"])
@pytest.mark.parametrize("threshold", [None, 0.3])
def test_the_predictor_reads_the_input_before_the_norm(
    layout: str, threshold: float | None, tmp_path: Path
) -> None:
    """A neuron counts where fc2 relu(fc1 x) reaches the threshold, which is 0 if not stated."""
    model = LAYOUTS[layout]()
    file = write_powerinfer(tmp_path / "p.gguf", model, Q.Q4_0, predictor=some_predictor, threshold=threshold)
    checkpoint = open_checkpoint(file)
    values = {name.removeprefix("blk.1."): v for name, v in read_by_library(file).items() if "blk.1." in name}
    x = np.random.default_rng(9).standard_normal((1, 64)).astype(np.float32)

    active = values["fc2.weight"] @ np.maximum(values["fc1.weight"] @ x[0], 0) >= (threshold or 0)
    assert 0.2 < active.mean() < 0.8
    norm = values.get("ffn_norm.weight", values["attn_norm.weight"])
    centred = x[0] - x[0].mean() if layout in ("falcon-40b", "opt") else x[0]
    n = centred / np.sqrt((centred**2).mean() + 1e-5) * norm
    n = n + values.get("ffn_norm.bias", values.get("attn_norm.bias", 0))
    up = values["ffn_up.weight"] @ n + values.get("ffn_up.bias", 0)
    h = np.maximum(up, 0)
    if "ffn_gate.weight" in values:
        gate = np.maximum(values["ffn_gate.weight"] @ n, 0)
        h = gate * (h if layout == "bamboo" else up)
    expected = (h * active) @ values["ffn_down_t.weight"] + values.get("ffn_down_t.bias", 0)

    model = build_transformer(checkpoint, ReferenceBackend())
    found = np.zeros_like(x)
    batch = Batch.of(model.sequence(1, "f32"), np.zeros(1, np.int32))
    model.layers[1].ffn.forward(x, found, batch)
    assert_close(found[0], expected.astype(np.float32), 1e-5)


def test_opt_as_its_converter_writes_it(tmp_path: Path) -> None:
    """The converter counts OPT's two rows before position 0 into the context, and states no epsilon."""
    model = LAYOUTS["opt"]()
    plain = write_plain(tmp_path / "plain.gguf", model)
    keys = {key: value for key, value in model.keys.items() if not key.endswith(("epsilon", "head_count_kv"))}
    stated = RandomModel("opt", keys | {"opt.context_length": 34}, model.weights)
    file = write_powerinfer(tmp_path / "p.gguf", stated, predictor=some_predictor, threshold=EVERY_NEURON)
    config = open_checkpoint(file).config
    assert (config.context_length, config.position_offset) == (32, 2)
    assert_close(decode(file), decode(plain), 1e-5)
