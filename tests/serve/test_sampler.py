"""The sampler against its definitions in float64 NumPy, and against statistics."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hotset.core.errors import HotsetError, RequestError
from hotset.serve.sampler import Sampler, Sampling, logprobs

LOGITS = np.array([2.0, -1.0, 0.5, 3.0, 0.0, 1.5, -0.5, 2.5], np.float32)
DRAWS = 5_000
# With at most 7 degrees of freedom chance exceeds this once in 100,000 times; with fixed seeds it does not.
CHI_SQUARE_LIMIT = 36.0


def softmax(logits):
    weights = np.exp(np.float64(logits) - np.max(logits))
    return weights / weights.sum()


def defined_distribution(logits, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """Steps 4 and 5 of the sampler's documentation, written out one token at a time."""
    p = softmax(np.float64(logits) / temperature)
    order = sorted(range(len(p)), key=lambda i: -p[i])
    if top_k:
        order = order[:top_k]
    kept, total = [], 0.0
    mass = sum(p[i] for i in order)
    for i in order:
        if kept and total >= top_p * mass and p[i] < p[kept[-1]] * (1 - 1e-5):
            break
        kept.append(i)
        total += p[i]
    kept = [i for i in kept if p[i] >= min_p * p[order[0]]]
    result = np.zeros(len(p))
    result[kept] = p[kept] / p[kept].sum()
    return result


def frequencies(sampling, logits=LOGITS, draws=DRAWS):
    sampler = Sampler(sampling, len(logits))
    return np.bincount([sampler.sample(logits) for _ in range(draws)], minlength=len(logits))


def chi_square(counts, expected):
    possible = expected > 0
    assert counts[~possible].sum() == 0
    return (((counts - expected) ** 2)[possible] / expected[possible]).sum()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 3.0},
        {"top_k": 3},
        {"top_p": 0.8},
        {"min_p": 0.2},
        {"temperature": 2.0, "top_k": 6, "top_p": 0.9, "min_p": 0.15},
    ],
)
def test_draws_follow_the_definition(options):
    counts = frequencies(Sampling(**{"temperature": 1.0, "seed": 7, **options}))
    assert chi_square(counts, defined_distribution(LOGITS, **options) * DRAWS) < CHI_SQUARE_LIMIT


def test_draws_from_a_large_vocabulary_follow_the_definition():
    """More tokens than one block of the running sum, with all weight on a few far apart."""
    places = [0, 511, 512, 7_000, 49_151]
    logits = np.full(49_152, -40.0, np.float32)
    logits[places] = [0.0, 1.0, 0.5, -0.5, 1.5]
    counts = frequencies(Sampling(temperature=1.0, seed=3), logits, 5_000)[places]
    assert counts.sum() == 5_000
    assert chi_square(counts, softmax(logits[places]) * 5_000) < CHI_SQUARE_LIMIT


@settings(deadline=None)
@given(
    logits=arrays(np.float32, st.integers(1, 40), elements=st.floats(-30, 30, width=32), unique=True),
    options=st.fixed_dictionaries(
        {
            "top_k": st.integers(0, 45),
            "top_p": st.floats(0, 1),
            "min_p": st.floats(0, 1),
            "temperature": st.floats(0.05, 5),
        }
    ),
    seed=st.integers(0, 2**32),
)
def test_only_tokens_of_the_definition_are_drawn(logits, options, seed):
    token = Sampler(Sampling(**options, seed=seed), len(logits)).sample(logits)
    # Rounding may put a token at the very edge of a cut on either side.
    top_p, min_p = min(1, options["top_p"] * (1 + 1e-5) + 1e-6), options["min_p"] * (1 - 1e-4)
    looser = {**options, "top_p": top_p, "min_p": min_p}
    assert defined_distribution(logits, **looser)[token] > 0


def test_greedy_takes_the_largest_and_leaves_the_logits():
    before = LOGITS.copy()
    sampling = Sampling(repetition_penalty=1.5, presence_penalty=1.0, logit_bias={0: 5.0})
    assert Sampler(Sampling(), 8).sample(LOGITS) == 3
    assert Sampler(sampling, 8, prompt=[3]).sample(LOGITS) == 0
    np.testing.assert_array_equal(LOGITS, before)


@pytest.mark.parametrize("temperature", [5e-324, 1e-30, 1e300])
def test_extreme_temperatures(temperature):
    counts = frequencies(Sampling(temperature=temperature, seed=1), draws=2_000)
    if temperature < 1:
        assert counts[3] == 2_000
    else:
        assert chi_square(counts, np.full(8, 250.0)) < CHI_SQUARE_LIMIT


def test_seed_repeats_and_its_absence_does_not():
    def draw(seed):
        sampler = Sampler(Sampling(temperature=2.0, seed=seed), 8)
        return [sampler.sample(LOGITS) for _ in range(50)]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    assert draw(None) != draw(None)


def test_repetition_penalty_is_that_of_transformers():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    rng = np.random.default_rng(0)
    prompt = [3, 1, 3, 20]
    sampler = Sampler(Sampling(repetition_penalty=1.7), 30, prompt)
    processor = transformers.RepetitionPenaltyLogitsProcessor(1.7)
    seen = list(prompt)
    for _ in range(40):
        logits = rng.standard_normal(30).astype(np.float32)
        expected = processor(torch.tensor([seen]), torch.tensor(logits)[None])[0].argmax()
        seen.append(sampler.sample(logits))
        assert seen[-1] == expected


def test_repetition_penalty_reaches_answer_and_prompt_and_presence_only_the_answer():
    logits = np.array([1.0, 0.9, 0.8, -5.0], np.float32)
    sampler = Sampler(Sampling(repetition_penalty=2.0), 4, prompt=[0])
    assert [sampler.sample(logits) for _ in range(3)] == [1, 2, 0]
    sampler = Sampler(Sampling(presence_penalty=0.5), 4, prompt=[0])
    assert [sampler.sample(logits) for _ in range(4)] == [0, 1, 2, 0]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_huge_values_are_as_far_as_it_goes(temperature):
    """Nothing overflows, and what a bias forbids stays so."""

    def tokens(**options):
        sampler = Sampler(Sampling(temperature=temperature, seed=1, **options), 8, prompt=range(8))
        return [sampler.sample(LOGITS) for _ in range(8)]

    for penalty in ("presence_penalty", "frequency_penalty"):
        assert sorted(tokens(**{penalty: 1e308})) == list(range(8))
        assert len(set(tokens(**{penalty: -1e308}))) == 1
    assert set(tokens(repetition_penalty=1e-308)) == {3}
    assert set(tokens(repetition_penalty=1e308, logit_bias={6: 1e308})) == {6}
    for repetition in (1e-308, 1e308):
        every = {"presence_penalty": 1e308, "frequency_penalty": 1e308, "repetition_penalty": repetition}
        assert 3 not in tokens(**every, logit_bias={3: -1e308})


def test_logit_bias_forces_and_forbids():
    forced = frequencies(Sampling(temperature=1.0, logit_bias={4: 100.0}), draws=100)
    assert forced[4] == 100
    assert frequencies(Sampling(temperature=1.0, logit_bias={3: -100.0}, seed=0), draws=500)[3] == 0


@given(
    logits=arrays(np.float32, st.integers(1, 60), elements=st.floats(-80, 80, width=32)),
    top=st.integers(0, 70),
    data=st.data(),
)
def test_logprobs_are_log_softmax_of_the_raw_logits(logits, top, data):
    chosen = data.draw(st.integers(0, len(logits) - 1))
    expected = np.log(softmax(logits))
    result = logprobs(logits, chosen, top)
    np.testing.assert_allclose(result.chosen, expected[chosen], rtol=1e-5, atol=1e-5)
    values = [value for _, value in result.top]
    np.testing.assert_allclose(values, np.sort(expected)[::-1][:top], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(values, expected[[token for token, _ in result.top]], rtol=1e-5, atol=1e-5)
    assert len({token for token, _ in result.top}) == min(top, len(logits))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "hot"),
        ("temperature", None),
        ("temperature", True),
        ("top_k", -1),
        ("top_k", 2.5),
        ("top_p", 1.01),
        ("top_p", -0.01),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("repetition_penalty", float("inf")),
        ("presence_penalty", float("nan")),
        pytest.param("presence_penalty", 10**400, id="presence_penalty-10**400"),
        ("seed", -1),
        ("seed", "x"),
        ("logprobs", -1),
        ("logit_bias", [1, 2]),
        ("logit_bias", {-1: 0.0}),
        ("logit_bias", {1: float("inf")}),
    ],
)
def test_a_wrong_value_is_refused_by_name_in_one_line(name, value):
    with pytest.raises(RequestError, match=name) as caught:
        Sampling(**{name: value})
    assert isinstance(caught.value, HotsetError)
    assert "expected" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_logit_bias_outside_the_vocabulary_is_refused():
    with pytest.raises(RequestError, match="token 8: the vocabulary has 8"):
        Sampler(Sampling(logit_bias={8: 1.0}), 8)


def test_frequency_penalty_counts():
    sampler = Sampler(Sampling(frequency_penalty=1.0), 3)
    logits = np.array([2.5, 2.0, 0.25], np.float32)
    assert [sampler.sample(logits) for _ in range(6)] == [0, 1, 0, 1, 0, 2]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_suppressed_tokens_are_never_chosen(temperature: float) -> None:
    logits = np.array([5, 9, 8, 1], np.float32)
    sampling = Sampling(temperature=temperature, seed=1, logit_bias={1: 100.0})
    sampler = Sampler(sampling, 4, never=(1, 2))
    assert {sampler.sample(logits) for _ in range(200)} <= {0, 3}
    assert logits[1] == 9
