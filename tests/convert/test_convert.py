"""Files stored by neuron: equal to their source in any order, exact in bytes, written whole or not at all."""

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Q
from helpers.parity import assert_close
from helpers.profiles import random_profile
from helpers.random_gguf import (
    F32,
    FFN,
    TOKENS,
    RandomModel,
    random_model,
    read_by_library,
    write_plain,
    write_powerinfer,
)
from helpers.small_disk import small_disk
from hypothesis import given, settings
from hypothesis import strategies as st

from hotset.backends.building import Backend
from hotset.backends.cpu import CpuBackend
from hotset.backends.reference import ReferenceBackend
from hotset.convert.by_neuron import DOWN_ERROR, KL, convert, source_predictors
from hotset.core.batch import Batch
from hotset.core.config import FFNPlan, Score, Way
from hotset.core.errors import HotsetError
from hotset.formats import Checkpoint, TensorType, open_checkpoint
from hotset.formats.gguf_file import read_gguf
from hotset.formats.tensor import tensor_from_array
from hotset.model.build import build_transformer

REFERENCE, CPU = ReferenceBackend(), CpuBackend(threads=2)
EXACT, DENSE = FFNPlan(Way.EXACT), FFNPlan(Way.DENSE)


def logits(checkpoint: Checkpoint, backend: Backend = REFERENCE) -> F32:
    model = build_transformer(checkpoint, backend)
    kv = model.sequence(len(TOKENS), "f32")
    # A prompt, whose neurons are all computed, and then token by token.
    parts = [model.forward(Batch.of(kv, TOKENS[:9], lossless=True, logits=None))]
    return np.concatenate([*parts, *(model.forward(Batch.of(kv, token)) for token in TOKENS[9:, None])])


@pytest.fixture
def relu(tmp_path: Path) -> Checkpoint:
    model = random_model("llama", activation="relu")
    return open_checkpoint(write_plain(tmp_path / "relu.gguf", model, Q.F16))


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1 << 30), levels=st.sampled_from([1, 2, 1000]))
def test_any_order_gives_the_same_logits(
    seed: int, levels: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("order")
    source = open_checkpoint(
        write_plain(directory / "m.gguf", random_model("llama", activation="relu"), Q.F16)
    )
    profile = random_profile(source, seed, levels)
    convert(source, directory / "o.gguf", profile)
    converted = open_checkpoint(directory / "o.gguf")
    assert [layer.ffn for layer in converted.config.layers] == [EXACT] * 2
    assert_close(logits(converted), logits(source), 1e-5)
    assert_close(logits(converted, CPU), logits(source, CPU), 1e-4)
    heat = read_by_library(directory / "o.gguf")["blk.1.ffn_profile.weight"]
    hotter = list(zip(*heat.tolist(), strict=True))
    assert hotter == sorted(hotter, reverse=True)


@pytest.mark.parametrize("name", ["qwen2", "gemma3", "falcon", "opt", "nemotron", "bamboo"])
def test_every_layout(name: str, tmp_path: Path) -> None:
    source = open_checkpoint(write_plain(tmp_path / "m.gguf", random_model(name)))
    conversion = convert(source, tmp_path / "o.gguf", random_profile(source))
    way = EXACT if source.config.activation.zero_producing else DENSE
    assert conversion.plans == (way, way)
    assert conversion.down_error == (0, 0)
    converted = open_checkpoint(tmp_path / "o.gguf")
    assert converted.config.activation is source.config.activation
    assert_close(logits(converted), logits(source), 1e-5)


SOURCES = [  # its type, gate's and up's in the file, down's
    (Q.F32, Q.F16, Q.F16),
    (Q.BF16, Q.F16, Q.F16),
    (Q.F16, Q.F16, Q.F16),
    (Q.Q8_0, Q.Q8_0, Q.Q8_0),
    (Q.Q4_0, Q.Q4_0, Q.Q8_0),
    (Q.Q4_1, Q.Q4_1, Q.Q8_0),
    (Q.Q5_0, Q.Q8_0, Q.Q8_0),
    (Q.Q4_K, Q.Q4_1, Q.Q8_0),
    (Q.Q6_K, Q.Q8_0, Q.Q8_0),
]


@pytest.mark.parametrize(("kind", "moved", "turned"), SOURCES, ids=lambda kind: kind.name)
def test_numbers_by_the_library(kind: Q, moved: Q, turned: Q, tmp_path: Path) -> None:
    """What `gguf` reads: rows of gate and up moved, byte for byte where the type stays; down turned."""
    model = random_model("llama", hidden=256, ffn=256)
    source = open_checkpoint(write_plain(tmp_path / "m.gguf", model, kind))
    profile = random_profile(source)
    conversion = convert(source, tmp_path / "o.gguf", profile, provenance={"note": "of a test"})
    before, after = read_by_library(tmp_path / "m.gguf"), read_by_library(tmp_path / "o.gguf")
    types = {t.name: t.tensor_type for t in gguf.GGUFReader(tmp_path / "o.gguf").tensors}
    for layer in range(2):
        order = np.lexsort((-profile.magnitude[layer], -profile.frequency[layer]))
        for part in ("gate", "up", "down_t"):
            name = f"blk.{layer}.ffn_{part}.weight"
            rows = before[name] if part != "down_t" else before[f"blk.{layer}.ffn_down.weight"].T
            rows = np.ascontiguousarray(rows[order])
            stored = turned if part == "down_t" else moved
            assert types[name] == stored
            same = part != "down_t" and kind == stored
            expected = rows if same else gguf.dequantize(gguf.quantize(rows, stored), stored)
            assert np.array_equal(after[name], expected), name
            if part == "down_t":
                error = np.linalg.norm(expected - rows) / np.linalg.norm(rows)
                assert conversion.down_error[layer] == pytest.approx(error, rel=1e-4)
        assert f"blk.{layer}.ffn_down.weight" not in after
    for name in before:
        if ".ffn_" not in name or "norm" in name:
            assert np.array_equal(before[name], after[name])
    metadata = read_gguf(tmp_path / "o.gguf").metadata
    assert metadata[DOWN_ERROR].tolist() == pytest.approx(conversion.down_error)
    assert metadata["hotset.convert.note"] == "of a test"
    assert metadata["hotset.profile.model_hash"] == profile.model_hash
    assert KL not in metadata


def test_ffn_type_is_taken(relu: Checkpoint, tmp_path: Path) -> None:
    convert(relu, tmp_path / "o.gguf", random_profile(relu), ffn_type=TensorType.Q8_0)
    converted = open_checkpoint(tmp_path / "o.gguf")
    types = {name: tensor.type for name, tensor in converted.tensors.items()}
    assert {types[f"blk.0.ffn_{part}.weight"] for part in ("gate", "up", "down_t")} == {TensorType.Q8_0}
    assert types["blk.0.attn_q.weight"] is TensorType.F16
    assert_close(logits(converted), logits(relu), 0.05)


def test_what_was_lost_is_remembered(relu: Checkpoint, tmp_path: Path) -> None:
    first = convert(relu, tmp_path / "o.gguf", random_profile(relu), ffn_type=TensorType.Q4_1)
    converted = open_checkpoint(tmp_path / "o.gguf")
    again = convert(converted, tmp_path / "p.gguf", random_profile(converted, seed=1))
    assert min(first.down_error) > 0.02
    assert again.down_error == pytest.approx(first.down_error)


def test_layers_without_a_plan_stay_as_they_are(relu: Checkpoint, tmp_path: Path) -> None:
    profile = random_profile(relu)
    convert(relu, tmp_path / "o.gguf", profile, [None, EXACT])
    converted = open_checkpoint(tmp_path / "o.gguf")
    assert [layer.ffn for layer in converted.config.layers] == [None, EXACT]
    for part in ("gate", "up", "down"):
        name = f"blk.0.ffn_{part}.weight"
        assert np.array_equal(converted.tensors[name].data, relu.tensors[name].data)
    heat = converted.tensors["blk.0.ffn_profile.weight"].to_float32()
    assert np.array_equal(heat, [profile.frequency[0], profile.magnitude[0]])
    assert_close(logits(converted), logits(relu), 1e-5)


def test_predictors_move_with_their_neurons(relu: Checkpoint, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    fc1 = tensor_from_array("", rng.standard_normal((8, 64)))
    fc2 = tensor_from_array("", rng.standard_normal((FFN, 8)))
    plan = FFNPlan(Way.PREDICTOR, Score.LOW_RANK, 0.5, kept=0.75)
    profile = random_profile(relu)
    convert(relu, tmp_path / "o.gguf", profile, [plan, EXACT], {0: (fc1, fc2)})
    converted = open_checkpoint(tmp_path / "o.gguf")
    assert [layer.ffn for layer in converted.config.layers] == [plan, EXACT]
    predictors = source_predictors(converted)
    assert list(predictors) == [0]
    assert np.array_equal(predictors[0][0].to_float32(), fc1.to_float32())
    assert np.array_equal(predictors[0][1].to_float32(), fc2.to_float32()[profile.order[0]])
    # Another order, the same neurons chosen: a file stored by neuron is sorted again without loss.
    again = convert(converted, tmp_path / "p.gguf", random_profile(converted, seed=1))
    assert again.plans == (plan, EXACT)
    assert again.down_error == (0, 0)
    twice = open_checkpoint(tmp_path / "p.gguf")
    rows = [c.tensors["blk.0.ffn_down_t.weight"].to_float32() for c in (converted, twice)]
    assert not np.array_equal(*rows)
    assert np.array_equal(*(np.unique(r, axis=0) for r in rows))
    assert_close(logits(twice), logits(converted), 1e-5)


@pytest.mark.parametrize("name", ["llama", "falcon", "opt"])
def test_a_powerinfer_file_keeps_its_predictors(name: str, tmp_path: Path) -> None:
    model = random_model(name, activation="relu")
    if name == "opt":  # whose context they count otherwise, and whose epsilon they leave out
        keys = {key: value for key, value in model.keys.items() if not key.endswith("epsilon")}
        model = replace(model, keys=keys | {"opt.context_length": 34})
    silent = np.zeros((4, 64), np.float32), np.zeros((FFN, 4), np.float32)
    file = write_powerinfer(tmp_path / "p.gguf", model, predictor=lambda layer: silent, threshold=0.0)
    source = open_checkpoint(file)
    convert(source, tmp_path / "o.gguf", random_profile(source))
    converted = open_checkpoint(tmp_path / "o.gguf")
    plan = FFNPlan(Way.PREDICTOR, Score.LOW_RANK_RELU, 0.0, float(np.float32(0.99)), raw_input=True)
    assert [layer.ffn for layer in converted.config.layers] == [plan] * 2
    assert np.array_equal(converted.tensors["blk.0.fc1.weight"].data, source.tensors["blk.0.fc1.weight"].data)
    assert_close(logits(converted), logits(source), 1e-5)


def test_the_divergence_is_measured_on_the_finished_file(relu: Checkpoint, tmp_path: Path) -> None:
    out = tmp_path / "o.gguf"

    def measure(path: Path) -> float:
        assert not out.exists()
        assert_close(logits(open_checkpoint(path)), logits(relu), 1e-5)
        return 0.125

    conversion = convert(relu, out, random_profile(relu), measure=measure)
    assert conversion.kl == read_gguf(out).metadata[KL] == 0.125
    assert conversion.size == out.stat().st_size


def test_nothing_is_left_when_it_is_interrupted(relu: Checkpoint, tmp_path: Path) -> None:
    out = tmp_path / "o.gguf"
    out.write_bytes(b"older")

    def interrupt(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    def fail(path: Path) -> float:
        raise HotsetError("the text is too short")

    with pytest.raises(KeyboardInterrupt):
        convert(relu, out, random_profile(relu), progress=interrupt)
    with pytest.raises(HotsetError, match="too short"):
        convert(relu, out, random_profile(relu), measure=fail)
    assert out.read_bytes() == b"older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.gguf", "relu.gguf"]


def test_a_full_disk_is_one_line_and_leaves_nothing(relu: Checkpoint, tmp_path: Path) -> None:
    with small_disk(), pytest.raises(HotsetError, match=r"o\.gguf: cannot be written: File too large$"):
        convert(relu, tmp_path / "o.gguf", random_profile(relu))
    assert [path.name for path in tmp_path.iterdir()] == ["relu.gguf"]


def test_bad_input_is_refused_before_anything_is_written(relu: Checkpoint, tmp_path: Path) -> None:
    profile = random_profile(relu)
    other = open_checkpoint(write_plain(tmp_path / "other.gguf", random_model("llama", ffn=128)))
    narrow = open_checkpoint(write_plain(tmp_path / "narrow.gguf", random_model("qwen2", hidden=48)))
    converted = tmp_path / "converted.gguf"
    convert(relu, converted, profile, ffn_type=TensorType.Q8_0)
    by_neuron = open_checkpoint(converted)
    own = random_profile(by_neuron)
    huge = replace(profile, fingerprint=profile.fingerprint[:, ::-1].copy())
    out = tmp_path / "o.gguf"
    cases = [
        (lambda: convert(other, out, profile), r"the profile is of random \(2 layers of 96"),
        (lambda: convert(relu, out, huge), "whose weights are not those of"),
        (lambda: convert(by_neuron, out, profile), "another order: profile this model"),
        (lambda: convert(relu, relu.path, profile), "relu.gguf is one of the files to be read"),
        (
            lambda: convert(narrow, out, random_profile(narrow), ffn_type=TensorType.Q4_0),
            "--ffn q4_0 needs a hidden size of a multiple of 32, and the model's is 48: use --ffn f16",
        ),
        (
            lambda: convert(by_neuron, out, own, ffn_type=TensorType.Q4_0),
            "layer 0 is stored by neuron already, as Q8_0: .* convert the original",
        ),
        (lambda: convert(by_neuron, out, own, [EXACT, None]), "layer 1 is stored by neuron already"),
        (lambda: convert(other, out, random_profile(other), [EXACT] * 2), "layer 0 is exact, which needs"),
        (lambda: convert(relu, tmp_path / "none" / "o.gguf", profile), "cannot be written"),
    ]
    for run, message in cases:
        with pytest.raises(HotsetError, match=message) as caught:
            run()
        assert "\n" not in str(caught.value)
    assert not out.exists()
    assert not list(tmp_path.rglob("*.partial"))


def test_gate_and_up_as_one_are_taken_apart(tmp_path: Path) -> None:
    """As Phi-3's and GLM-4's files have them, here with a factor besides."""
    llama = random_model("llama")
    weights = dict(llama.weights)
    for layer in range(2):
        gate = weights.pop(f"blk.{layer}.ffn_gate.weight")
        weights[f"blk.{layer}.ffn_up.weight"] = np.concatenate([gate, weights[f"blk.{layer}.ffn_up.weight"]])
    weights["blk.1.ffn_up.scale"] = np.array([1.5], np.float32)
    keys = {key.replace("llama.", "phi3."): value for key, value in llama.keys.items()}
    fused = RandomModel("phi3", keys, weights)
    source = open_checkpoint(write_plain(tmp_path / "m.gguf", fused, Q.F16))
    assert source.config.gated
    assert source.tensors["blk.1.ffn_gate.weight"].shape == (FFN, 64)
    convert(source, tmp_path / "o.gguf", random_profile(source))
    assert_close(logits(open_checkpoint(tmp_path / "o.gguf")), logits(source), 1e-5)


def test_a_number_beyond_half_precision_is_refused(tmp_path: Path) -> None:
    model = random_model("llama")
    model.weights["blk.1.ffn_down.weight"][3, 5] = 1e5
    source = open_checkpoint(write_plain(tmp_path / "m.gguf", model, Q.F32))
    with pytest.raises(HotsetError, match=r"blk\.1\.ffn_down\.weight has numbers beyond 65504"):
        convert(source, tmp_path / "o.gguf", random_profile(source))
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = random_model("llama")
    model.weights["blk.1.ffn_down.weight"][3, 5] = np.nan
    source = open_checkpoint(write_plain(tmp_path / "m.gguf", model, Q.F32))
    message = r"blk\.1\.ffn_down\.weight cannot be stored as Q8_0: .*finite"
    with pytest.raises(HotsetError, match=message):
        convert(source, tmp_path / "o.gguf", random_profile(source), ffn_type=TensorType.Q8_0)
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]
