"""PowerInfer's own files, of every architecture and type: what they say, compute and become."""

import json
import math
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Q
from helpers.parity import assert_close, usual_error
from helpers.placements import eager_machine
from helpers.powerinfer_files import FILE_TYPES, PowerInferFile, converted, quantised
from helpers.profiles import random_profile
from helpers.random_gguf import F32, FFN, TOKENS, plain_twin

from hotset.backends.cpu import CpuBackend
from hotset.backends.reference import ReferenceBackend
from hotset.cli import main
from hotset.convert.by_neuron import convert, source_predictors
from hotset.convert.quantize import quantise_model
from hotset.core.batch import Batch
from hotset.core.config import FFNPlan, Score, Way
from hotset.core.errors import CheckpointError, HotsetError
from hotset.formats import Checkpoint, TensorType, open_checkpoint
from hotset.formats.gguf_file import read_gguf
from hotset.model.build import build_transformer
from hotset.placing.planner import Planner
from hotset.serve.load import load_model, with_plan
from hotset.testing.stand_in import StandInDevice
from hotset.tokenizer import Tokenizer

ARCHITECTURES = ("llama", "bamboo", "falcon", "opt")
CPU, REFERENCE = CpuBackend(threads=1), ReferenceBackend()
PREDICTED = FFNPlan(Way.PREDICTOR, Score.LOW_RANK_RELU, 0.0, 0.99, raw_input=True)
by_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


def predictor(layer: int, hidden: int) -> tuple[F32, F32]:
    """A random low-rank predictor; each layer has its own width."""
    rng = np.random.default_rng(layer)
    width = 32 * (layer + 1)
    fc1 = rng.standard_normal((width, hidden)) / hidden**0.5
    return fc1.astype(np.float32), rng.standard_normal((FFN, width)).astype(np.float32)


def of_type(name: str, kind: Q, hidden: int = 64) -> PowerInferFile:
    """F32 and F16 by the converter, the rest by the quantiser from F16."""
    if kind in (Q.F32, Q.F16):
        return converted(name, kind, predictor=predictor, hidden=hidden)
    return quantised(converted(name, predictor=predictor, hidden=hidden), kind)


def decode(checkpoint: Checkpoint, backend: CpuBackend | ReferenceBackend = REFERENCE) -> F32:
    """Logits after each token, read one by one."""
    model = build_transformer(checkpoint, backend)
    kv = model.sequence(len(TOKENS), "f32")
    return np.concatenate([model.forward(Batch.of(kv, token)) for token in TOKENS[:, None]])


@by_architecture
def test_the_bytes_are_the_librarys(name: str, tmp_path: Path) -> None:
    """The converters write through the `gguf` library and then change the first four bytes."""
    file = converted(name, predictor=predictor, threshold=0.25)
    read = read_gguf(file.write(tmp_path / "p.gguf"))
    writer = gguf.GGUFWriter(tmp_path / "library.gguf", name)
    T = gguf.GGUFValueType
    for key in list(read.metadata)[1:]:
        value = read.metadata[key]
        if isinstance(value, np.ndarray):
            value = value.tolist()
        kinds = {str: T.STRING, bool: T.BOOL, int: T.UINT32, float: T.FLOAT32, list: T.ARRAY}
        writer.add_key_value(key, value, kinds[type(value)])
    for tensor, values, kind in file.tensors:
        data = np.ascontiguousarray(values, np.float32 if kind is Q.F32 else np.float16)
        writer.add_tensor(tensor, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert file.to_bytes() == b"PWRI" + (tmp_path / "library.gguf").read_bytes()[4:]
    assert "tokenizer.ggml.pre" not in file.keys


@by_architecture
def test_what_a_file_says(name: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(converted(name, predictor=predictor, threshold=0.25).write(tmp_path / "p"))
    config = checkpoint.config
    assert [layer.ffn for layer in config.layers] == [replace(PREDICTED, cutoff=0.25)] * 2
    assert (config.context_length, config.norm_eps) == (32, pytest.approx(1e-5))
    assert config.activation.value == ("drelu" if name == "bamboo" else "relu")
    assert checkpoint.notes == ()  # its tokenizer is its family's, not a guess
    tokenizer = Tokenizer.from_checkpoint(checkpoint)
    if name == "opt":  # which begins with its end token
        assert tokenizer.encode("he")[0] == 2
    assert tokenizer.encode("hello hell") == {
        "llama": [1, 267, 263, 267],
        "bamboo": [1, 267, 263, 267],
        "falcon": [259, 79, 260],
        "opt": [2, 262, 82, 263],
    }.get(name)


@pytest.mark.parametrize(("name", "pre"), [("falcon", "falcon"), ("opt", "gpt-2")])
def test_the_pre_tokenizer_is_the_familys(name: str, pre: str, tmp_path: Path) -> None:
    text = "It's 12345 `quoted`, \n\n  and 3.14!"
    file = converted(name, predictor=predictor)
    own = Tokenizer.from_checkpoint(open_checkpoint(file.write(tmp_path / "own")))
    stated = replace(file, keys=file.keys | {"tokenizer.ggml.pre": pre})
    assert own.encode(text) == Tokenizer.from_checkpoint(
        open_checkpoint(stated.write(tmp_path / "s"))
    ).encode(text)
    other = {"tokenizer.ggml.pre": "default"}
    changed = Tokenizer.from_checkpoint(open_checkpoint(tmp_path / "own", other))
    assert changed.encode("12345 `a`") == Tokenizer.from_checkpoint(
        open_checkpoint(replace(file, keys=file.keys | other).write(tmp_path / "o"))
    ).encode("12345 `a`")


TYPES = [(kind, 256 if kind.name.endswith("_K") else 64) for kind in FILE_TYPES]
STORED = {Q.F32: "F16", Q.Q5_0: "Q8_0", Q.Q5_1: "Q8_0", Q.Q4_K: "Q4_1", Q.Q5_K: "Q8_0", Q.Q6_K: "Q8_0"}


@by_architecture
@pytest.mark.parametrize(("kind", "hidden"), TYPES, ids=[kind.name for kind, _ in TYPES])
def test_every_type_runs_and_converts(name: str, kind: Q, hidden: int, tmp_path: Path) -> None:
    """`exact` is what a plain file of the same numbers gives, before and after."""
    file = of_type(name, kind, hidden)
    source = open_checkpoint(file.write(tmp_path / "p.gguf"))
    twin = decode(open_checkpoint(plain_twin(tmp_path / "p.gguf", file.model, tmp_path / "twin.gguf")))
    exact = with_plan(source, Way.EXACT)
    rounded = 5e-3 if kind is Q.F32 else 0.08 if kind in STORED else 1e-5
    assert_close(decode(exact), twin, 1e-5)
    assert_close(decode(exact, CPU), twin, max(rounded, 1e-3 if kind in (Q.F32, Q.F16) else 0.08))

    conversion = convert(source, tmp_path / "o.gguf", random_profile(source))
    after = open_checkpoint(tmp_path / "o.gguf")
    assert conversion.plans == (PREDICTED, PREDICTED)
    stored = replace(PREDICTED, kept=float(np.float32(0.99)))
    assert [layer.ffn for layer in after.config.layers] == [stored] * 2
    types = {tensor.type.name for key, tensor in after.tensors.items() if "ffn_down_t.w" in key}
    assert types == {STORED.get(kind, kind.name)}
    assert [(old.name, new.name) for old, new in conversion.changed] == (
        [(kind.name, STORED[kind])] if kind in STORED else []
    )
    assert (min(conversion.down_error) > 0) == (kind in STORED)
    assert_close(decode(with_plan(after, Way.EXACT)), decode(exact), max(rounded, 1e-4))
    # The same neurons are chosen, in another order; which ones audits look at goes by their places.
    unaudited = replace(PREDICTED, kept=0.0)
    pair = [decode(with_plan(checkpoint, unaudited)) for checkpoint in (after, source)]
    if kind in STORED:  # rounded, a neuron at the cut-off may be chosen otherwise: then that row is far off
        assert usual_error(*pair) <= rounded
    else:
        assert_close(*pair, 1e-4)
    pair = [decode(with_plan(checkpoint, unaudited), CPU) for checkpoint in (after, source)]
    assert_close(
        *pair, 1e-2 if kind in (Q.F32, Q.F16) else 0.2
    )  # 8-bit activations choose a little otherwise
    order = random_profile(source).order
    for layer, (fc1, fc2) in source_predictors(after).items():
        old_fc1, old_fc2 = source_predictors(source)[layer]
        assert np.array_equal(fc1.data, old_fc1.data)
        assert np.array_equal(fc2.to_float32(), old_fc2.to_float32()[order[layer]])
    assert Tokenizer.from_checkpoint(after).encode("hello") == Tokenizer.from_checkpoint(source).encode(
        "hello"
    )


def test_rows_may_be_asked_for_in_another_type_where_nothing_is_rounded_twice(tmp_path: Path) -> None:
    for kind in (Q.F32, Q.F16, Q.Q6_K):
        file = of_type("llama", kind, 256).write(tmp_path / f"{kind.name}.gguf")
        source = open_checkpoint(file)
        convert(source, tmp_path / "o.gguf", random_profile(source), ffn_type=TensorType.Q8_0)
        after = open_checkpoint(tmp_path / "o.gguf")
        assert after.tensors["blk.0.ffn_down_t.weight"].type is TensorType.Q8_0
        assert_close(decode(with_plan(after, Way.EXACT)), decode(with_plan(source, Way.EXACT)), 0.05)
    source = open_checkpoint(of_type("llama", Q.Q4_0).write(tmp_path / "q.gguf"))
    with pytest.raises(HotsetError, match="by neuron already, as Q4_0: .* or leave --ffn out"):
        convert(source, tmp_path / "o.gguf", random_profile(source), ffn_type=TensorType.Q8_0)


@pytest.mark.parametrize("predicted", [0, 1])
def test_layers_without_a_predictor_are_exact(predicted: int, tmp_path: Path) -> None:
    """Its converter drops all predictors behind a missing file, and says nothing."""
    file = converted("llama", predictor=predictor, predicted_layers=predicted)
    source = open_checkpoint(file.write(tmp_path / "p.gguf"))
    ways = [Way.PREDICTOR] * predicted + [Way.EXACT] * (2 - predicted)
    assert [layer.ffn and layer.ffn.way for layer in source.config.layers] == ways
    missing = ", ".join(str(layer) for layer in range(predicted, 2))
    assert source.notes == (f"layers without a predictor compute every neuron that is not zero: {missing}",)
    twin = decode(open_checkpoint(plain_twin(tmp_path / "p.gguf", file.model, tmp_path / "twin.gguf")))
    assert_close(decode(with_plan(source, Way.EXACT)), twin, 1e-5)
    if predicted == 0:
        assert_close(decode(source), twin, 1e-5)
    convert(source, tmp_path / "o.gguf", random_profile(source))
    assert [p.ffn and p.ffn.way for p in open_checkpoint(tmp_path / "o.gguf").config.layers] == ways


@pytest.mark.parametrize("threshold", [1e31, -1e31, math.inf, -math.inf])
def test_thresholds_beyond_all_scores(threshold: float, tmp_path: Path) -> None:
    file = converted("llama", predictor=predictor, threshold=threshold)
    source = open_checkpoint(file.write(tmp_path / "p.gguf"))
    chosen = with_plan(source, Way.EXACT)
    for backend in (REFERENCE, CPU):
        if threshold < 0:  # every neuron
            assert_close(decode(source, backend), decode(chosen, backend), 1e-4)
        else:  # none: what is left without FFNs
            found = decode(source, backend)
            assert np.isfinite(found).all()
            assert np.abs(found - decode(chosen, backend)).max() > 0.1
    convert(source, tmp_path / "o.gguf", random_profile(source))
    plan = source.config.layers[0].ffn
    assert plan is not None
    unaudited = replace(plan, kept=0.0)
    after = open_checkpoint(tmp_path / "o.gguf")
    assert_close(decode(with_plan(after, unaudited)), decode(with_plan(source, unaudited)), 1e-4)


def test_a_threshold_that_is_no_number(tmp_path: Path) -> None:
    file = converted("llama", predictor=predictor, threshold=math.nan)
    with pytest.raises(CheckpointError, match=r"powerinfer.sparse_threshold: expected a number"):
        open_checkpoint(file.write(tmp_path / "p.gguf"))
    open_checkpoint(tmp_path / "p.gguf", {"powerinfer.sparse_threshold": 0})


def test_quantize_keeps_the_plan(tmp_path: Path) -> None:
    source = open_checkpoint(converted("opt", predictor=predictor, threshold=0.25).write(tmp_path / "p.gguf"))
    quantise_model(source, tmp_path / "q.gguf", TensorType.Q8_0)
    after = open_checkpoint(tmp_path / "q.gguf")
    stored = replace(PREDICTED, cutoff=0.25, kept=float(np.float32(0.99)))
    assert [layer.ffn for layer in after.config.layers] == [stored] * 2
    assert after.tensors["blk.1.ffn_down_t.weight"].type is TensorType.Q8_0
    exact = [with_plan(checkpoint, Way.EXACT) for checkpoint in (after, source)]
    assert_close(decode(exact[0]), decode(exact[1]), 0.05)


def run(*arguments: object) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code == 0


@pytest.mark.parametrize("kind", [Q.F32, Q.Q6_K], ids=lambda kind: kind.name)
def test_the_remedies_named_work(
    kind: Q, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a file whose neurons cannot be read one by one: the note names convert, which needs a profile."""
    monkeypatch.chdir(tmp_path)
    file = of_type("falcon", kind, 256).write(Path("p.gguf"))
    Path("text.txt").write_text("hello hell " * 60)
    note = f"in other types than the file's ({kind.name} as {STORED[kind]})"
    run("run", file, "--raw", "-p", "hello", "-n", 2)
    assert note in capsys.readouterr().err
    run("profile", file, "--text", "text.txt", "--context", 32, "-o", "a.npz")
    assert note in capsys.readouterr().err
    run("convert", file, "--profile", "a.npz", "-o", "o.gguf")
    assert f"{kind.name} as {STORED[kind]}" in capsys.readouterr().out
    for options in ((), ("--ffn", "exact"), ("--ffn", "dense")):
        run("eval", "o.gguf", "--text", "text.txt", "--context", 32, "--against", file, "--json", *options)
        printed = capsys.readouterr()
        assert "stored" not in printed.err or note in printed.err
        assert json.loads(printed.out)["perplexity"] > 1


def test_neurons_on_a_device_need_to_be_in_types_that_can_be_read(tmp_path: Path) -> None:
    file = of_type("llama", Q.Q6_K, 256).write(tmp_path / "p.gguf")
    with pytest.raises(HotsetError, match=r"p.gguf: .*Q6_K as Q8_0.*hotset convert .*--vram"):
        load_model(file, vram=1 << 20, device=StandInDevice())


def test_hot_neurons_that_are_not_sorted_are_told_of(tmp_path: Path) -> None:
    file = converted("llama", predictor=predictor).write(tmp_path / "p.gguf")
    source = open_checkpoint(file)
    convert(source, tmp_path / "o.gguf", random_profile(source))
    machine, use = eager_machine(), np.full((2, FFN), 0.5, np.float32)
    everything = Planner(source, machine, context=16, prompt=16, frequency=use).everything
    for path, told in ((file, True), (tmp_path / "o.gguf", False)):
        notes = []
        for budget in range(int(0.9 * everything), everything, 8192):
            device = StandInDevice()
            model = load_model(path, threads=1, context=16, vram=budget, device=device, machine=machine)
            assert model.plan
            if any(0 < layer.hot < FFN for layer in model.plan.placement.layers):
                notes.append(any("not sorted by how often they fire" in note for note in model.notes))
        assert notes
        assert set(notes) == {told}
