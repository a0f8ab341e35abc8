"""Who fires: what the native parts count, against what the sequences' choosers know."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.random_checkpoint import by_neuron, mixture, quantised, random_checkpoint
from helpers.tiny_families import tiny_families
from helpers.tiny_models import save

from hotset.backends.cpu import CpuBackend
from hotset.core.batch import Batch
from hotset.core.config import ExpertsConfig, FFNPlan, LayerPlacement, Placement, Score, Way
from hotset.formats import open_checkpoint
from hotset.formats.tensor import TensorType, tensor_from_array
from hotset.hybrid.build import build_hybrid
from hotset.model.build import build_transformer
from hotset.model.reading import traffic
from hotset.serve import heat as heat_room
from hotset.serve.heat import heat
from hotset.serve.loaded import Model
from hotset.testing.stand_in import StandInDevice

NEURONS = 100


def loaded(monkeypatch, checkpoint, ram=None):
    backend = CpuBackend(2, ram=ram)
    model = Model(
        Path("random.gguf"), build_transformer(checkpoint, backend), None, backend, traffic(checkpoint)
    )
    monkeypatch.setattr(heat_room, "open_model", lambda path: checkpoint)
    heat_room._profiles.cache_clear()
    return model


def hybrid(monkeypatch, checkpoint, *places):
    backend = CpuBackend(1)
    placement = Placement(tuple(places), head=True)
    transformer = build_hybrid(checkpoint, placement, StandInDevice(), backend)
    monkeypatch.setattr(heat_room, "open_model", lambda path: checkpoint)
    heat_room._profiles.cache_clear()
    return Model(Path("random.gguf"), transformer, None, backend, traffic(checkpoint))


def decode(model, tokens):
    """A prompt, which is not counted, and single tokens, which are."""
    sequence = model.sequence(64)
    model.transformer.forward(Batch.of(sequence, np.array([3, 1, 4, 1, 5, 9, 2, 6], np.int32), lossless=True))
    for token in tokens:
        model.transformer.forward(Batch.of(sequence, np.array([token], np.int32)))
    return sequence


def test_neurons(monkeypatch):
    plan = FFNPlan(Way.THRESHOLD, Score.DOWN, cutoff=0.4)
    checkpoint = random_checkpoint(windows=(None, 30), hidden_size=32, ffn_size=NEURONS)
    checkpoint = quantised(by_neuron(checkpoint, plan, [np.arange(NEURONS)] * 2), TensorType.F16)
    profile = np.stack([np.linspace(1, 0, NEURONS), np.zeros(NEURONS)]).astype(np.float32)
    checkpoint.tensors["blk.0.ffn_profile.weight"] = tensor_from_array("profile", profile)
    model = loaded(monkeypatch, checkpoint)
    assert all(layer.rows == 0 for layer in heat(model).layers)
    sequences = [decode(model, range(10)), decode(model, range(7))]
    told = heat(model)
    assert (told.device, told.file, told.note) == (0, 0, None)
    assert told.memory == told.weights == model.traffic.weights
    assert [layer.unit_bytes for layer in told.layers] == list(model.traffic.by_neuron) != [0, 0]
    for i, layer in enumerate(told.layers):
        work = sum((sequence.choosers[i].work for sequence in sequences[1:]), sequences[0].choosers[i].work)
        assert (layer.kind, layer.units, layer.column) == ("neurons", NEURONS, 16)
        assert (layer.rows, layer.computed) == (17, work.chosen)
        assert len(layer.fired) == 7
        assert 0 < sum(layer.fired) == work.fired < 17 * NEURONS
    assert told.layers[0].profile == pytest.approx(
        [profile[0, i : i + 16].mean() for i in range(0, 100, 16)], abs=1e-4
    )
    assert told.layers[1].profile is None


def test_experts_in_memory_and_in_the_file(monkeypatch):
    shape = ExpertsConfig(count=6, used=2, size=32)
    checkpoint = mixture(
        random_checkpoint(windows=(None, None), hidden_size=32, ffn_size=NEURONS), [shape, None]
    )
    model = loaded(monkeypatch, checkpoint)
    before = heat(model)
    assert before.layers[0].in_memory == (0,) * 6
    assert before.file == model.traffic.experts > 0
    decode(model, range(5))
    told = heat(model)
    experts, dense = told.layers
    assert (experts.kind, experts.units, experts.column, experts.rows) == ("experts", 6, 1, 13)
    assert experts.computed == sum(experts.fired) == 13 * shape.used
    assert [n > 0 for n in experts.fired] == [n > 0 for n in experts.in_memory]
    assert told.file < before.file
    assert experts.unit_bytes * 6 == model.traffic.experts
    assert (dense.kind, dense.rows) == ("dense", 0)


def test_a_dense_model_says_why(monkeypatch):
    model = loaded(monkeypatch, random_checkpoint(windows=(None,), hidden_size=32, ffn_size=300))
    told = heat(model)
    assert told.layers[0].kind == "dense"
    assert told.layers[0].column == 3
    assert "Every neuron is computed for every token" in told.note


def test_neurons_on_a_device_are_not_counted(monkeypatch):
    plan = FFNPlan(Way.THRESHOLD, Score.DOWN, cutoff=0.4)
    checkpoint = random_checkpoint(windows=(None, None, None), hidden_size=32, ffn_size=96)
    checkpoint = quantised(by_neuron(checkpoint, plan, [np.arange(96)] * 3), TensorType.F16)
    model = hybrid(monkeypatch, checkpoint, *(LayerPlacement(True, hot) for hot in (0, 32, 96)))
    decode(model, range(9))
    cold, split, hot = heat(model).layers
    assert (cold.kind, cold.on_device, cold.rows) == ("neurons", 0, 9)
    assert (split.kind, split.on_device, split.rows) == ("neurons", 32, 9)
    assert split.fired[:2] == (0, 0)
    assert 0 < sum(split.fired) <= split.computed <= 9 * 64
    assert (hot.kind, hot.on_device) == ("dense", 96)


def test_experts_on_a_device(monkeypatch):
    shape = ExpertsConfig(count=6, used=2, size=32)
    base = random_checkpoint(windows=(None, None), hidden_size=32, ffn_size=96)
    checkpoint = mixture(base, [shape, None])
    model = hybrid(monkeypatch, checkpoint, LayerPlacement(True, 3, (0, 2, 5)), LayerPlacement(True, 48))
    decode(model, range(5))
    experts, dense = heat(model).layers
    assert (experts.kind, experts.resident) == ("experts", (1, 0, 1, 0, 0, 1))
    assert (dense.kind, dense.on_device) == ("dense", 48)
    model.transformer.close()


def test_experts_beside_an_ffn(monkeypatch, tmp_path):
    save(tiny_families()["gemma4-beside"](), tmp_path)
    model = loaded(monkeypatch, open_checkpoint(tmp_path))
    decode(model, range(5))
    for layer in heat(model).layers:
        assert (layer.kind, layer.rows) == ("experts", 13)
        assert sum(layer.fired) == layer.computed > 0


def test_layers_without_an_ffn(monkeypatch):
    checkpoint = random_checkpoint(windows=(None, None), hidden_size=32, ffn_size=96)
    layers = (replace(checkpoint.config.layers[0], feeds=False), checkpoint.config.layers[1])
    checkpoint = replace(checkpoint, config=replace(checkpoint.config, layers=layers))
    model = loaded(monkeypatch, checkpoint)
    decode(model, range(2))
    assert [(layer.kind, layer.units) for layer in heat(model).layers] == [("dense", 0), ("dense", 96)]
