"""Profiles of mixtures count which experts tokens select."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.random_checkpoint import mixture, random_checkpoint

from hotset.activations.capture import windows_of
from hotset.activations.collect import collect
from hotset.activations.profile import ActivationProfile, fingerprint, load_profile
from hotset.activations.summary import summarise
from hotset.backends.contract import F32
from hotset.backends.cpu import CpuBackend
from hotset.backends.reference import ReferenceBackend
from hotset.core.batch import Batch
from hotset.core.config import Activation, ExpertsConfig
from hotset.core.errors import HotsetError
from hotset.draw.profile_page import write_report
from hotset.formats.checkpoint import Checkpoint
from hotset.model.build import build_transformer

WINDOWS = windows_of(np.random.default_rng(1).integers(0, 53, 160).tolist(), 40)
SHAPE = ExpertsConfig(count=10, used=3, size=16, shared_size=12)
SKIP = 4


def checkpoint(early: bool = False) -> Checkpoint:
    """A dense layer between two mixtures."""
    shape = replace(SHAPE, early=early)
    return mixture(random_checkpoint(windows=(None, None, 5)), [shape, None, shape])


def profile(model: Checkpoint) -> ActivationProfile:
    transformer = build_transformer(model, ReferenceBackend())
    facts = {"model": "random", "corpus": "dice", "fingerprint": fingerprint(model)}
    return collect(transformer, WINDOWS, skip=SKIP, **facts)  # type: ignore[arg-type]


def weights_by_hand(model: Checkpoint) -> list[F32]:
    """(T, E) of each mixture, layer by layer, with the model's own parts."""
    transformer = build_transformer(model, ReferenceBackend())
    found: list[list[F32]] = [[], []]
    for window in WINDOWS:
        sequence = transformer.sequence(len(window))
        batch = Batch.of(sequence, window, lossless=True)
        x = transformer.embedding.forward(batch.tokens, batch.positions)
        seen = iter(found)
        for layer, config in zip(transformer.layers, model.config.layers, strict=True):
            experts = layer.ffn
            logits = experts.route(x) if config.experts and config.experts.early else None  # type: ignore[attr-defined]
            layer.mixer.forward(x, x, batch)
            if config.experts:
                next(seen).append(experts.select(x, logits)[SKIP:])  # type: ignore[attr-defined]
            if logits is None:
                experts.forward(x, x, batch)
            else:
                experts.forward(x, x, batch, logits)  # type: ignore[call-arg]
    return [np.concatenate(parts) for parts in found]


@pytest.mark.parametrize("early", [False, True])
def test_a_profile_counts_selections(early: bool) -> None:
    model = checkpoint(early)
    made = profile(model)
    assert made.units == "experts" and made.frequency.shape == (3, 10)
    assert not made.frequency[1].any() and not made.levels.any()
    for layer, weights in zip((0, 2), weights_by_hand(model), strict=True):
        np.testing.assert_allclose(made.frequency[layer], (weights > 0).mean(axis=0), rtol=1e-6)
        np.testing.assert_allclose(made.magnitude[layer], weights.mean(axis=0), rtol=1e-4)
        assert made.frequency[layer].sum() == pytest.approx(SHAPE.used)
    assert [round(layer.density, 6) for layer in summarise(made)] == [0.3, 0, 0.3]


def test_neurons_that_fire_inside_experts(tmp_path: Path) -> None:
    model = checkpoint()
    model = replace(model, config=replace(model.config, activation=Activation.RELU))
    facts = {"model": "random", "corpus": "dice", "fingerprint": fingerprint(model)}
    made = []
    for backend in (ReferenceBackend(), CpuBackend(2)):
        transformer = build_transformer(model, backend)
        made.append(collect(transformer, WINDOWS, skip=SKIP, count_fired=True, **facts))  # type: ignore[arg-type]
        inside = made[-1].inside
        assert inside is not None and inside[1] == 0
        assert (inside[[0, 2]] > 0.3).all() and (inside[[0, 2]] < 0.7).all()
        assert [layer.inside for layer in summarise(made[-1])] == inside.tolist()
    np.testing.assert_allclose(made[0].inside, made[1].inside, atol=2e-3)
    made[0].save(tmp_path / "p.npz")
    np.testing.assert_array_equal(load_profile(tmp_path / "p.npz").inside, made[0].inside)
    assert profile(model).inside is None  # where nobody asks


def test_a_profile_is_saved_and_knows_its_model(tmp_path: Path) -> None:
    made = profile(checkpoint())
    made.save(tmp_path / "p.npz")
    again = load_profile(tmp_path / "p.npz")
    assert again.units == "experts" and (again.frequency == made.frequency).all()
    again.check(checkpoint())
    with pytest.raises(HotsetError, match=r"10 experts, relu.*28 neurons, relu"):
        again.check(random_checkpoint(windows=(None, None, 5)))
    other = mixture(random_checkpoint(windows=(None, None, 5)), [SHAPE, None, SHAPE], seed=1)
    with pytest.raises(HotsetError, match="weights are not those of"):
        again.check(other)


def test_a_report_speaks_of_experts(tmp_path: Path) -> None:
    page = write_report(profile(checkpoint()), tmp_path / "report").read_text()
    assert "3 layers of 10 experts" in page and "experts firing" in page
    assert "neuron" not in page
