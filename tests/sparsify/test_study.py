"""From a tiny model's file to one stored by neuron with predictors or cut-offs, and back by the loader."""

import json
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Q
from helpers.profiles import random_profile
from helpers.random_gguf import CONTEXT, FFN, LAYERS, VOCABULARY, random_model, write_plain

from hotset.backends.reference import ReferenceBackend
from hotset.cli import main
from hotset.cli.calibrate import _facts as calibration_facts
from hotset.cli.calibrate import _print as print_calibration
from hotset.cli.train_predictor import _facts as training_facts
from hotset.cli.train_predictor import _print as print_training
from hotset.convert.by_neuron import convert
from hotset.core.config import FFNPlan, Score, Way
from hotset.core.errors import HotsetError, RequestError
from hotset.formats import open_checkpoint
from hotset.model.build import build_transformer, neuron_ffn_spec
from hotset.sparsify import calibrate as calibrate_module
from hotset.sparsify import train as train_module
from hotset.sparsify.calibrate import calibrate
from hotset.sparsify.study import split, study
from hotset.sparsify.threshold import Budget
from hotset.sparsify.train import CHOSEN, train_predictors
from hotset.sparsify.trial import Trial, TrialFFN
from hotset.tokenizer import Tokenizer

EXACT = FFNPlan(Way.EXACT)


def stage(title):
    return nullcontext()


@pytest.fixture
def opened(tmp_path):
    """Of an activation: (checkpoint, transformer, profile, windows, study, where to write)."""
    left = []

    def open_(activation):
        path = write_plain(tmp_path / "m.gguf", random_model("llama", activation=activation), Q.F16)
        checkpoint = open_checkpoint(path)
        transformer = build_transformer(checkpoint, ReferenceBackend())
        profile = random_profile(checkpoint)
        out = tmp_path / "out.gguf"
        ids = np.random.default_rng(1).integers(0, VOCABULARY, 20 * CONTEXT)
        windows = split([ids], [], CONTEXT, None, 10**6)
        plan = FFNPlan(Way.PREDICTOR, Score.GATE_Q4)
        studying = study(checkpoint, transformer, profile, out, None, plan, stage)
        left.append(studying)
        return checkpoint, transformer, profile, windows, studying.__enter__(), out

    yield open_
    for studying in left:
        studying.__exit__(None, None, None)
    assert {path.name for path in tmp_path.iterdir()} <= {"m.gguf", "out.gguf"}


def times(factors):
    """Instead of measuring: each kind in its turn takes this share of the dense time."""
    shares = iter(factors)

    def measure(ffns, others, inputs, done=None):
        return np.ones(len(ffns)), np.full(len(ffns), next(shares))

    return measure


@pytest.mark.parametrize(
    ("factors", "name"),
    [((0.5, 0.4, 0.45, 0.6, 0.7), "gate_q4"), ((0.5, 0.9, 0.9, 0.4, 0.6), "low_rank"), ((1,) * 5, None)],
)
def test_the_fastest_predictors_are_written_and_read(factors, name, opened, monkeypatch, capsys):
    checkpoint, transformer, profile, windows, studied, out = opened("relu")
    monkeypatch.setattr(train_module, "measure_ms", times(factors))
    training = train_predictors(studied, windows, target=0.95, budget=0.5, stage=stage)
    assert [best and best.name for best in training.best] == [name] * LAYERS
    assert list(training.qualities) == ["exact", "gate_q4", "gate_q2", "low_rank", "low_rank_relu", CHOSEN]
    assert training.qualities["exact"].kl == pytest.approx(0, abs=1e-3)
    assert training.qualities[CHOSEN] == training.qualities.get(name, training.dense)

    print_training(training)
    json.dumps(training_facts(training))
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert sum("*" in row and (name or "dense") in row for row in rows) == LAYERS
    assert [row[-2] for row in rows if row[:1] == ["low_rank"] and len(row) == 10] == [
        f"{training.qualities['low_rank'].perplexity / training.dense.perplexity:.4f}"
    ]
    assert ["taken", str(LAYERS), name or "dense"] in rows

    convert(checkpoint, out, profile, training.plans, training.predictors(studied))
    written = open_checkpoint(out)
    assert [layer.ffn and layer.ffn.score for layer in written.config.layers] == [
        Score(name) if name else None
    ] * LAYERS
    # The file's neurons lie where the predictor thinks they do.
    ffns = [layer.ffn for layer in transformer.layers]
    for i, layer in enumerate(written.config.layers):
        if layer.ffn:
            dense = studied.build(i)
            ffns[i] = TrialFFN(dense, neuron_ffn_spec(written, i, layer.ffn))
    again = Trial(transformer, windows.held_out[:8]).run(ffns)
    assert again.perplexity == pytest.approx(training.qualities[CHOSEN].perplexity, rel=1e-4)


def test_predictors_are_timed_as_they_decode(opened, monkeypatch):
    """Not as prompts are read, in which nothing that fires is left out."""
    _, _, _, windows, studied, _ = opened("relu")
    errors = []

    def measure(ffns, others, inputs, done=None):
        outs = np.zeros((2, 8, len(ffns), inputs[0].shape[1]), np.float32)
        for model, parts in enumerate((ffns, others)):
            for row in range(8):
                for i, ffn in enumerate(parts):
                    ffn.forward(inputs[i][row : row + 1], outs[model, row, i, None], None)
        errors.append(np.abs(outs[1] - outs[0]).max() / np.abs(outs[0]).max())
        return np.ones((2, len(ffns)))

    monkeypatch.setattr(train_module, "measure_ms", measure)
    train_predictors(studied, windows, target=0.9, budget=0.5, stage=stage)
    exact, *guessed = errors
    assert exact < 0.01 < min(guessed) and len(guessed) == 4


def test_a_predictor_that_harms_the_model_is_not_taken(opened, monkeypatch, capsys):
    _, _, _, windows, studied, _ = opened("relu")
    monkeypatch.setattr(train_module, "measure_ms", times((0.5, 0.45, 0.9, 0.4, 0.6)))
    monkeypatch.setattr(train_module, "_MOST_KL", -1.0)
    training = train_predictors(studied, windows, target=0.95, budget=0.5, stage=stage)
    assert [best and best.name for best in training.best] == ["exact"] * LAYERS
    for choices in training.choices:
        kls = {choice.name: choice.kl for choice in choices}
        assert kls["gate_q4"] > 0 and kls["low_rank"] > 0 and kls["gate_q2"] is None
    print_training(training)
    assert capsys.readouterr().out.count("(KL 0.") == 2 * LAYERS


def test_calibration_keeps_its_budget(opened, monkeypatch, capsys):
    checkpoint, _, profile, windows, studied, out = opened("silu")
    densities = calibrate_module._TIMED_DENSITIES
    measured = [0.5 + 0.5 * d for d in densities * 2]
    monkeypatch.setattr(calibrate_module, "measure_ms", times([*measured, 0.7, 0.7, 1.0]))
    calibration = calibrate(studied, windows, stage)
    kls = []
    for text in ("kl=0.001", "kl=0.01"):
        found = calibration.search(Budget.parse(text), stage)
        assert found.quality.kl <= Budget.parse(text).amount
        kls.append(found.quality.kl)
    assert 0 < kls[0] < kls[1]
    facts = {"budget": "kl=0.01", "out": str(out)} | calibration_facts(calibration, found)
    facts = json.loads(json.dumps(facts))
    assert facts["ffn_ms"] < facts["ffn_dense_ms"] == LAYERS
    print_calibration(facts)
    assert f"{facts['density']:.1%}" in capsys.readouterr().out
    assert np.mean(found.densities) < 1
    # Timed once more, nothing is faster after all.
    assert calibration.search(Budget.parse("kl=0.01"), stage).plans == [None] * LAYERS

    convert(checkpoint, out, profile, found.plans)
    plans = [layer.ffn for layer in open_checkpoint(out).config.layers]
    for plan, wanted in zip(plans, found.plans, strict=True):
        assert plan is None if wanted is None else plan.way is Way.THRESHOLD
        assert plan is None or plan.cutoff == pytest.approx(wanted.cutoff)


def test_texts_are_cut_apart():
    windows = split([range(100), range(1000, 1100)], [], 10, None, 200)
    assert [len(part) for part in (windows.train, windows.tune, windows.held_out)] == [12, 4, 4]
    assert [int(window[0]) for window in windows.held_out] == [80, 90, 1080, 1090]
    windows = split([range(100)], [range(500, 530)], 10, 7, 50)
    assert [len(part) for part in (windows.train, windows.tune, windows.held_out)] == [4, 1, 3]
    assert [int(window[0]) for window in windows.held_out] == [7] * 3


@pytest.mark.parametrize(
    ("texts", "judging", "limit", "message"),
    [
        ([range(49)], [], 1000, "50 tokens or more, found 49"),
        ([range(90)] * 2, [], 90, "of which --tokens allows 45"),
        ([range(50)], [range(9)], 1000, "10 tokens or more, found 9"),
    ],
)
def test_too_short_texts(texts, judging, limit, message):
    with pytest.raises(RequestError, match=message):
        split(texts, judging, 10, None, limit)


def test_a_model_stored_by_neuron_is_refused(opened, tmp_path):
    checkpoint, transformer, profile, _, _, out = opened("relu")
    convert(checkpoint, out, profile)
    with (
        pytest.raises(HotsetError, match="stored by neuron already"),
        study(open_checkpoint(out), transformer, profile, tmp_path / "x.gguf", None, EXACT, stage),
    ):
        pass


@pytest.mark.parametrize("command", ["train-predictor", "calibrate"])
def test_mistakes_are_one_line(command, tmp_path, capsys):
    model = write_plain(tmp_path / "m.gguf", random_model("llama"))
    other = write_plain(tmp_path / "other.gguf", random_model("llama", ffn=2 * FFN))
    profile, text, out = tmp_path / "p.npz", tmp_path / "text.txt", tmp_path / "out.gguf"
    random_profile(open_checkpoint(model)).save(profile)
    text.write_text("some words")
    for arguments, message in [
        ((model, "--profile", profile, "-o", out), "--text"),
        ((model, "--text", text, "-o", out), "--profile"),
        ((model, "--profile", profile, "--text", tmp_path / "none.txt", "-o", out), "none.txt"),
        ((model, "--profile", tmp_path / "none.npz", "--text", text, "-o", out), "none.npz: cannot be read"),
        ((other, "--profile", profile, "--text", text, "-o", out), "does not belong to"),
        ((model, "--profile", profile, "--text", text, "-o", out, "--budget", "much"), "budget is 'much'"),
        ((model, "--profile", profile, "--text", text, "-o", tmp_path / "no" / "o.gguf"), "no directory"),
    ]:
        with pytest.raises(SystemExit) as exit:
            main([command, *map(str, arguments)])
        printed = capsys.readouterr()
        assert exit.value.code == 2
        assert message in printed.err
        assert printed.err.count("\n") == 1
        assert not out.exists()


@pytest.mark.parametrize("command", ["train-predictor", "calibrate"])
def test_what_gains_nothing_writes_nothing_and_says_so(command, tmp_path, capsys, monkeypatch):
    def no_faster(ffns, others, inputs, done=None):
        return np.ones(len(ffns)), np.ones(len(ffns))

    monkeypatch.setattr(calibrate_module, "measure_ms", no_faster)
    monkeypatch.setattr(train_module, "measure_ms", no_faster)
    tokenizer = SimpleNamespace(
        bos_id=None, encode=lambda text, **options: [ord(letter) % VOCABULARY for letter in text]
    )
    monkeypatch.setattr(Tokenizer, "from_checkpoint", lambda checkpoint: tokenizer)
    activation = "relu" if command == "train-predictor" else "silu"
    model = write_plain(tmp_path / "m.gguf", random_model("llama", activation=activation), Q.F16)
    profile, text, out = tmp_path / "p.npz", tmp_path / "text.txt", tmp_path / "out.gguf"
    random_profile(open_checkpoint(model)).save(profile)
    text.write_text("".join(map(chr, np.random.default_rng(0).integers(97, 122, 40 * CONTEXT))))
    arguments = [command, str(model), "--profile", str(profile), "--text", str(text), "-o", str(out)]
    for way in ([], ["--json"]):
        with pytest.raises(SystemExit) as exit:
            main([*arguments, *way])
        printed, err = capsys.readouterr()
        assert (exit.value.code, err) == (0, "")
        if way:
            assert json.loads(printed)["out"] is None
        else:
            words = " ".join(printed.split())
            assert "written" in words and "nothing, for in no layer leaving out neurons is clearly" in words
        assert {path.name for path in tmp_path.iterdir()} == {"m.gguf", "p.npz", "text.txt"}
