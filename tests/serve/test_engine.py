"""The engine over a fake model: text, ends, KV reuse, interruptions and refusals."""

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotset.core.errors import RequestError
from hotset.serve.sampler import Sampling


def text(tokens):
    return "".join(token.text for token in tokens)


def ids(tokens):
    return [token.id for token in tokens]


def test_an_answer_ends_with_the_end_token(make_engine):
    tokens = list(make_engine(b"Hello").generate("Say|"))
    assert text(tokens) == "Hello"
    assert ids(tokens) == [*b"Hello", 256]
    assert [token.finish_reason for token in tokens] == [None] * 5 + ["stop"]
    assert all(token.logprobs is None for token in tokens)


def test_max_tokens_cuts_and_says_so(make_engine):
    tokens = list(make_engine(b"Hello").generate("Say|", max_tokens=2))
    assert (text(tokens), tokens[-1].finish_reason, len(tokens)) == ("He", "length", 2)


def test_without_max_tokens_the_context_is_the_limit(make_engine):
    engine = make_engine(b"x" * 1000, context=50)
    tokens = list(engine.generate("Say|"))
    assert (len(tokens), tokens[-1].finish_reason) == (46, "length")


def test_characters_are_never_torn(make_engine):
    tokens = list(make_engine("aé€🎉".encode()).generate("|"))
    assert [token.text for token in tokens] == ["a", "", "é", "", "", "€", "", "", "", "🎉", ""]
    torn = list(make_engine("🎉".encode()).generate("|", max_tokens=2))
    assert [token.text for token in torn] == ["", "\ufffd"]


@pytest.mark.parametrize("stop", [["lo, W"], ["zzz", "lo"], "lo", ["o", "llo, W"]])
def test_stop_strings_never_leak(make_engine, stop):
    engine = make_engine(b"Hello, World")
    tokens = list(engine.generate("Say|", stop=stop))
    assert tokens[-1].finish_reason == "stop"
    assert text(tokens) == ("Hell" if stop == ["o", "llo, W"] else "Hel")
    assert len(tokens) < len(b"Hello, World")  # nothing is computed past the stop


def test_text_held_for_a_stop_that_never_comes_is_given_at_the_end(make_engine):
    for limit in (None, 5):
        tokens = list(make_engine(b"Hello").generate("|", stop=["lo!"], max_tokens=limit))
        assert text(tokens) == "Hello"


def test_logprobs_are_of_the_raw_logits(make_engine):
    sampling = Sampling(logprobs=3, logit_bias={7: 50.0})
    token = next(make_engine(b"H").generate("|", sampling=sampling))
    assert token.id == 7
    assert token.logprobs.top[0][0] == ord("H")
    assert token.logprobs.top[0][1] > token.logprobs.chosen
    assert len(token.logprobs.top) == 3


@settings(deadline=None, max_examples=60)
@given(prompts=st.lists(st.text("ab", min_size=1, max_size=12), min_size=2, max_size=5))
def test_kv_reuse_changes_nothing_but_the_work(make_engine, prompts):
    engine = make_engine()
    forward = engine.model.transformer
    for prompt in prompts:
        common = 0
        held = engine.state.ids
        while common < min(len(held), len(prompt) - 1) and held[common] == ord(prompt[common]):
            common += 1
        forward.calls.clear()
        reused = ids(engine.generate(prompt, max_tokens=4))
        assert forward.calls[0] == len(prompt) - common  # only what the cache did not hold
        assert reused == ids(make_engine().generate(prompt, max_tokens=4))


def test_a_prompt_wholly_cached_computes_its_last_token_again(make_engine):
    engine = make_engine()
    first = ids(engine.generate("hello", max_tokens=3))
    engine.model.transformer.calls.clear()
    assert ids(engine.generate("hello", max_tokens=3)) == first
    assert engine.model.transformer.calls == [1, 1, 1]


def test_the_model_is_told_what_is_a_prompt(make_engine):
    """Also of one token: an approximate plan must not choose its neurons."""
    engine = make_engine()
    for prompt in ("x", "hello", "hello", "hello, again"):
        engine.model.transformer.prompts.clear()
        list(engine.generate(prompt, max_tokens=4))
        assert engine.model.transformer.prompts == [True, False, False, False]


def test_a_conversation_computes_only_its_new_end(make_engine):
    engine = make_engine(b"Hi")
    messages = [{"role": "user", "content": "One"}]
    assert text(engine.chat(messages)) == "Hi"
    engine.model.transformer.calls.clear()
    list(engine.chat([{"role": "user", "content": "One|Hi"}, {"role": "user", "content": "Two"}]))
    assert engine.model.transformer.calls[0] == len("Two|")


def test_closing_and_abandoning_leave_the_engine_ready(make_engine):
    engine, fresh = make_engine(), make_engine()
    tokens = engine.generate("some prompt")
    for _ in range(3):
        next(tokens)
    tokens.close()
    for _ in engine.generate("some other prompt"):
        break
    assert ids(engine.generate("some prompt", max_tokens=5)) == ids(
        fresh.generate("some prompt", max_tokens=5)
    )


@pytest.mark.parametrize("calls", [0, 1, 3])
def test_an_interruption_leaves_the_engine_ready(make_engine, calls):
    engine, fresh = make_engine(), make_engine()
    engine.model.transformer.fail_after = calls
    with pytest.raises(KeyboardInterrupt):
        list(engine.generate("a rather long prompt", max_tokens=9))
    engine.model.transformer.fail_after = None
    for prompt in ("a rather long prompt", "a rather short one"):
        assert ids(engine.generate(prompt, max_tokens=9)) == ids(fresh.generate(prompt, max_tokens=9))


def test_one_request_at_a_time(make_engine):
    engine = make_engine()
    first = engine.generate("first")
    next(first)
    with pytest.raises(RequestError, match="busy"):
        next(engine.generate("second"))
    first.close()
    next(engine.generate("second"))
    # A generator may be started in one thread and closed in another.
    third = engine.generate("third")
    thread = threading.Thread(target=lambda: next(third))
    thread.start()
    thread.join()
    third.close()
    next(engine.generate("fourth"))


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("", {}, "the prompt is empty"),
        ([], {}, "the prompt is empty"),
        ([3, 257], {}, "token 257: this model has tokens 0 to 256"),
        ([-1], {}, "token -1"),
        ("x", {"max_tokens": 0}, "max_tokens is 0: expected 1 or more"),
        ("x" * 200, {}, "200 tokens, but the context has room for 200.*--context"),
        ("x" * 201, {"max_tokens": 1}, "201 tokens, but the context has room for 200.*--context"),
        ("x", {"stop": [""]}, "stop"),
        ("x", {"sampling": Sampling(logit_bias={257: 1.0})}, "token 257"),
    ],
)
def test_what_cannot_be_served_is_refused_at_once(make_engine, prompt, options, message):
    with pytest.raises(RequestError, match=message):
        make_engine().generate(prompt, **options)


def test_a_prompt_and_answer_that_just_fit_are_served(make_engine):
    engine = make_engine(b"y" * 60)
    assert len(list(engine.generate("x" * 149 + "|", max_tokens=50))) == 50


@pytest.mark.parametrize("max_tokens", [51, 10**9])
def test_a_longer_answer_is_cut_to_what_fits(make_engine, max_tokens):
    tokens = list(make_engine(b"y" * 60).generate("x" * 149 + "|", max_tokens=max_tokens))
    assert (len(tokens), tokens[-1].finish_reason) == (50, "length")


def test_progress_counts_what_is_read_and_the_text_stays_the_same(make_engine):
    engine = make_engine(b"yes", context=2000)
    told = []
    prompt = "x" * 1200 + "|"
    assert text(engine.generate(prompt, progress=lambda *t: told.append(t))) == "yes"
    assert told == [(0, 1201), (512, 1201), (1024, 1201), (1201, 1201)]
    told.clear()
    assert text(engine.generate(prompt, progress=lambda *t: told.append(t))) == "yes"
    assert told == [(0, 1), (1, 1)]
