"""Capturing neurons' values and counting them, against counts made directly from the reference backend."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.random_checkpoint import by_neuron, random_checkpoint

from hotset.activations.capture import capture, windows_of
from hotset.activations.collect import collect
from hotset.activations.profile import fingerprint
from hotset.backends.cpu import CpuBackend
from hotset.backends.reference import ReferenceBackend
from hotset.backends.reference.ffn import ReferenceFFN
from hotset.core.batch import Batch
from hotset.core.config import Activation, FFNPlan, Way
from hotset.core.errors import HotsetError
from hotset.model.build import build_transformer

IDS = np.random.default_rng(1).integers(0, 53, 200).tolist()
WINDOWS = windows_of(IDS, 40, bos=7)


def values(model, windows, skip=0):
    """(L, T, F) values of all neurons, token by token: no batches, no skipping."""
    everything = [[] for _ in model.layers]
    for window in windows:
        kv = model.sequence(len(window))
        for position, token in enumerate(window):
            seen = []
            capture_one(model, kv, token, seen)
            for layer, h in enumerate(seen):
                if position >= skip:
                    everything[layer].append(h)
    return np.array(everything)


def capture_one(model, kv, token, seen):
    """One token by hand, through the model's own parts."""
    batch = Batch.of(kv, np.array([token], np.int32), lossless=True)
    view = model.backend.view(batch)
    x = model.embedding.forward(batch.tokens, batch.positions)
    for layer in model.layers:
        out = x.copy() if model.config.parallel else x
        layer.mixer.forward(x, out, view)
        gate, h = np.empty((2, 1, model.config.ffn_size), np.float32)
        layer.ffn.neurons(x, gate, h)
        seen.append(h[0])
        layer.ffn.forward(x, out, view)
        x = out
    kv.advance(1)


def profile(checkpoint, backend=None, windows=WINDOWS, **options):
    model = build_transformer(checkpoint, backend or ReferenceBackend())
    facts = {"model": "random", "corpus": "dice", "fingerprint": fingerprint(checkpoint)}
    return collect(model, windows, **facts, **options)


def test_windows():
    assert [len(window) for window in WINDOWS] == [40] * 5
    assert {window[0] for window in WINDOWS} == {7}
    assert np.concatenate(windows_of(IDS, 30)).tolist() == IDS[:180]
    assert windows_of(IDS, 201) == []


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("backend", [ReferenceBackend, CpuBackend])
def test_capture_shows_what_the_ffns_compute(backend, parallel):
    model = build_transformer(random_checkpoint(parallel=parallel), backend())
    shown = [[] for _ in model.layers]
    inputs = []

    def observe(layer, x, gate, h):
        shown[layer].append(h.copy())
        inputs.append(x.shape)
        assert gate.shape == h.shape
        assert (h[gate < 0] == 0).all()

    finished = []
    capture(model, WINDOWS, observe, skip=3, done=finished.append)
    expected = values(model, WINDOWS, skip=3)
    np.testing.assert_allclose([np.concatenate(h) for h in shown], expected, rtol=1e-3, atol=1e-3)
    assert set(inputs) == {(37, 20)}
    assert finished == [1, 2, 3, 4, 5]


def test_capture_in_slices_and_leaves_the_model_alone():
    model = build_transformer(random_checkpoint(context_length=2048), ReferenceBackend())
    tokens = np.random.default_rng(2).integers(0, 53, 1030, dtype=np.int32)
    lengths = []
    capture(model, [tokens, tokens[:2]], lambda layer, x, gate, h: lengths.append(len(h)), skip=2)
    assert lengths == [510, 510, 512, 512, 6, 6]
    before = [layer.ffn for layer in model.layers]
    assert [type(ffn).__name__ for ffn in before] == ["ReferenceFFN"] * 2


@pytest.mark.parametrize("activation", [Activation.RELU, Activation.DRELU, Activation.RELU2])
def test_counts(activation):
    checkpoint = random_checkpoint(activation=activation)
    made = profile(checkpoint)
    h = values(build_transformer(checkpoint, ReferenceBackend()), WINDOWS, skip=4)
    assert made.tokens == h.shape[1] == 5 * 36
    assert (made.levels == 0).all()
    np.testing.assert_allclose(made.frequency, (h != 0).mean(axis=1), atol=2 / made.tokens)
    np.testing.assert_allclose(made.magnitude, np.abs(h).mean(axis=1), rtol=1e-3, atol=1e-4)
    parts = [(part != 0).mean(axis=1) for part in (h[:, : 2 * 36], h[:, 2 * 36 :])]
    np.testing.assert_allclose(made.halves, parts, atol=2 / 72)
    hottest = np.take_along_axis(made.frequency, made.order, axis=1)
    assert (np.diff(hottest, axis=1) <= 0).all()
    np.testing.assert_allclose(made.density, made.frequency.mean(axis=1), rtol=1e-6)


@pytest.mark.parametrize("activation", [Activation.SILU, Activation.GELU])
def test_levels_of_activations_without_zeros(activation):
    checkpoint = random_checkpoint(activation=activation)
    made = profile(checkpoint, windows=WINDOWS[:4])  # levels are estimated on all four
    h = np.abs(values(build_transformer(checkpoint, ReferenceBackend()), WINDOWS[:4], skip=4))
    for layer, level in zip(h, made.levels, strict=True):
        carried = layer[layer > level].sum() / layer.sum()
        assert 0.8999 < carried < 0.91
        np.testing.assert_allclose(made.frequency[0], (h[0] > made.levels[0]).mean(axis=0), atol=0.02)
    assert ((made.density > 0.05) & (made.density < 0.95)).all()


@pytest.mark.parametrize("backend", [ReferenceBackend, CpuBackend])
@pytest.mark.parametrize("activation", [Activation.RELU, Activation.SILU])
def test_runs_are_equal_to_the_bit_also_when_interrupted(tmp_path, activation, backend):
    checkpoint = random_checkpoint(activation=activation)
    partial = tmp_path / "out.partial"

    def stop(done, total):
        if done == 3 * 40:
            raise KeyboardInterrupt

    for name in ("whole", "again"):
        profile(checkpoint, backend()).save(tmp_path / name)
    with pytest.raises(KeyboardInterrupt):
        profile(checkpoint, backend(), partial=partial, save_seconds=0, progress=stop)
    told = []
    resumed = profile(checkpoint, backend(), partial=partial, progress=lambda *done: told.append(done))
    assert told == [(4 * 40, 5 * 40), (5 * 40, 5 * 40)]
    resumed.save(tmp_path / "resumed")
    whole = (tmp_path / "whole").read_bytes()
    assert (tmp_path / "again").read_bytes() == whole
    assert (tmp_path / "resumed").read_bytes() == whole


def test_an_interruption_within_a_window_keeps_the_windows_before(tmp_path, monkeypatch):
    """However seldom sums are saved: they are at the interruption."""
    checkpoint, partial = random_checkpoint(activation=Activation.RELU), tmp_path / "out.partial"
    profile(checkpoint).save(tmp_path / "whole")
    neurons, calls = ReferenceFFN.neurons, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 2 * 3 + 2:  # in the second of two layers, in the fourth window
            raise KeyboardInterrupt
        neurons(*arguments)

    monkeypatch.setattr(ReferenceFFN, "neurons", interrupted)
    with pytest.raises(KeyboardInterrupt):
        profile(checkpoint, partial=partial)
    monkeypatch.undo()
    told = []
    resumed = profile(checkpoint, partial=partial, progress=lambda *done: told.append(done))
    assert told == [(4 * 40, 5 * 40), (5 * 40, 5 * 40)]
    resumed.save(tmp_path / "resumed")
    assert (tmp_path / "resumed").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_partial_file_of_something_else_is_not_continued(tmp_path):
    partial = tmp_path / "out.partial"
    told = []
    profile(random_checkpoint(), partial=partial, save_seconds=0)
    for options in ({"windows": WINDOWS[1:]}, {"skip": 2}):
        told.clear()
        profile(random_checkpoint(), partial=partial, progress=lambda *done: told.append(done), **options)
        assert told[0][0] == 40
    for other in (random_checkpoint(seed=1), random_checkpoint(activation=Activation.RELU2)):
        told.clear()
        profile(other, partial=partial, progress=lambda *done: told.append(done))
        assert told[0][0] == 40
    partial.write_bytes(partial.read_bytes()[:-100])
    told.clear()
    profile(random_checkpoint(), partial=partial, progress=lambda *done: told.append(done))
    assert told[0][0] == 40


@pytest.mark.parametrize("windows", [[], WINDOWS[:1], windows_of(IDS, 4)])
def test_text_too_short(windows):
    with pytest.raises(HotsetError, match="expected at least two of more than 4 tokens"):
        profile(random_checkpoint(), windows=windows)


def test_a_profile_knows_its_model():
    checkpoint = random_checkpoint()
    made = profile(checkpoint)
    made.check(replace(checkpoint, path=Path("elsewhere")))
    noise = np.random.default_rng(0)
    tensors = dict(checkpoint.tensors)
    for name in ("blk.0.ffn_up.weight", "blk.1.ffn_up.weight"):  # as quantisation does
        values = tensors[name].to_float32()
        tensors[name] = type(tensors[name])(
            name,
            tensors[name].type,
            values.shape,
            (values * noise.uniform(0.8, 1.2, values.shape)).astype(np.float32).reshape(-1).view(np.uint8),
        )
    made.check(replace(checkpoint, tensors=tensors))
    orders = [np.arange(28), np.roll(np.arange(28), 1)]
    for other in (random_checkpoint(seed=1), by_neuron(checkpoint, FFNPlan(Way.EXACT), orders)):
        with pytest.raises(HotsetError, match=r"^the profile is of random, whose weights are not those of"):
            made.check(other)
    for other in (random_checkpoint(activation=Activation.SILU), random_checkpoint(ffn_size=27)):
        with pytest.raises(HotsetError, match="2 layers of 28 neurons, relu.*does not belong to random"):
            made.check(other)
