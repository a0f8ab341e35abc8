"""Cut-offs that follow a sequence: the definition, on synthetic scores."""

import numpy as np
import pytest

from hotset.backends.cutoff import CALM, FIRST_GAP, LEAST_GAP, MOST_GAP, Cutoff

F32 = np.float32
NEURONS = 400
KEPT = 0.95


def token(rng: np.random.Generator, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Scores and values of a token: a neuron fires where its true gate, near its score, is positive."""
    gate = rng.standard_normal(NEURONS)
    scores = gate + 0.5 * rng.standard_normal(NEURONS) + shift
    return scores.astype(F32), (np.maximum(gate, 0) * rng.standard_normal(NEURONS)).astype(F32)


def kept(cutoff: float, rng: np.random.Generator, shift: float = 0.0) -> float:
    shares = []
    for _ in range(400):
        scores, h = token(rng, shift)
        shares.append(np.abs(h)[scores >= cutoff].sum() / np.abs(h).sum())
    return float(np.mean(shares))


def decode(cutoff: Cutoff, start: int, count: int, rng: np.random.Generator, shift: float = 0.0) -> list[int]:
    """The positions that were audited."""
    return [p for p in range(start, start + count) if _step(cutoff, p, rng, shift)]


def _step(cutoff: Cutoff, position: int, rng: np.random.Generator, shift: float) -> bool:
    scores, h = token(rng, shift)
    due = cutoff.due(position, lossless=False)
    if due:
        cutoff.learn(position, scores, h, lossless=False)
    return due


def test_it_starts_where_the_plan_has_it_and_stays_without_audits() -> None:
    still = Cutoff(0.5)
    assert still.value == 0.5
    assert not any(still.due(p, lossless) for p in range(300) for lossless in (True, False))


def test_a_prompt_sets_the_cutoff_before_the_first_answer() -> None:
    rng = np.random.default_rng(0)
    cutoff = Cutoff(4.0, KEPT)  # keeps nothing
    audited = [p for p in range(400) if cutoff.due(p, lossless=True)]
    assert audited[:3] == [15, 23, 31]
    assert audited[-2:] == [383, 399]
    for position in audited:
        cutoff.learn(position, *token(rng, shift=1.0), lossless=True)
    assert kept(cutoff.value, rng, shift=1.0) == pytest.approx(KEPT, abs=0.01)


def test_audits_find_the_share_to_be_kept_and_become_rare() -> None:
    rng = np.random.default_rng(1)
    cutoff = Cutoff(0.0, KEPT)
    audited = decode(cutoff, 8, 1500, rng)
    assert kept(cutoff.value, rng) == pytest.approx(KEPT, abs=0.012)
    gaps = np.diff(audited)
    assert gaps[0] == FIRST_GAP
    assert gaps[CALM] == 2 * FIRST_GAP
    assert gaps[-1] == MOST_GAP


def test_a_change_of_subject_is_followed() -> None:
    """What was kept comes back within 256 tokens, audits being more often meanwhile."""
    rng = np.random.default_rng(2)
    cutoff = Cutoff(0.0, KEPT)
    decode(cutoff, 8, 1500, rng)
    assert kept(cutoff.value, rng, shift=-1.0) < 0.85
    audited = decode(cutoff, 1508, 256, rng, shift=-1.0)
    assert kept(cutoff.value, rng, shift=-1.0) > KEPT - 0.015
    assert np.diff(audited).min() < MOST_GAP


def test_surprises_bring_audits_closer_down_to_a_limit() -> None:
    rng = np.random.default_rng(3)
    cutoff = Cutoff(0.0, KEPT)
    scores, h = token(rng)
    position = 8
    gaps = []
    for i in range(8):
        worse = scores - F32(2.0 * i)  # each time all is lost
        while not cutoff.due(position, lossless=False):
            position += 1
        cutoff.learn(position, worse - F32(50.0), h, lossless=False)
        gaps.append(cutoff.audits[-1].gap)
        position += 1
    assert gaps[0] == LEAST_GAP == min(gaps)


def test_layers_are_audited_at_different_tokens() -> None:
    first, second = (next(p for p in range(8, 99) if Cutoff(0, KEPT, i).due(p, False)) for i in (0, 1))
    assert first != second


def test_going_back_forgets_and_a_copy_goes_its_own_way() -> None:
    rng = np.random.default_rng(4)
    cutoff = Cutoff(0.0, KEPT)
    decode(cutoff, 8, 200, rng)
    at_208, fork = cutoff.value, cutoff.copy()
    decode(cutoff, 208, 300, rng, shift=-1.0)
    assert cutoff.value != at_208
    assert fork.value == at_208
    cutoff.rewind(208)
    assert cutoff.value == at_208
    assert cutoff.audits == fork.audits
    cutoff.rewind(0)
    assert cutoff.value == 0.0


def test_a_token_on_which_nothing_fires_says_nothing() -> None:
    cutoff = Cutoff(0.25, KEPT)
    cutoff.learn(15, np.ones(5, F32), np.zeros(5, F32), lossless=True)
    assert not cutoff.audits
    assert cutoff.learn(23, np.array([1, 2, 3], F32), np.array([0, 1, -3], F32), lossless=True) == 1
    assert np.array_equal(cutoff.audits[-1].scores, np.array([2, 2, 2, 2, 2, 2, 3], F32))
