"""The engine over a fake model: text, ends, KV reuse, interruptions and refusals."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotset.core.errors import RequestError
from hotset.serve.sampler import Sampling


def text(tokens):
    return "".join(token.text for token in tokens)


def ids(tokens):
    return [token.id for token in tokens]


def common(a, b):
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


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
def test_what_is_reused_changes_nothing_but_the_work(make_engine, prompts):
    engine = make_engine()
    shared = "a beginning that is worth a copy: "
    read = []
    for prompt in prompts:
        most = max((common(prompt, other) for other in read), default=-len(shared))
        read.append(prompt)
        answer = engine.generate(shared + prompt, max_tokens=4)
        reused = ids(answer)
        # Only what no sequence held, and always the last token.
        assert answer.cached_tokens == min(len(shared) + most, len(shared + prompt) - 1)
        assert reused == ids(make_engine().generate(shared + prompt, max_tokens=4))


def test_a_prompt_wholly_cached_computes_its_last_token_again(make_engine):
    engine = make_engine()
    prompt = "hello, this is a prompt of some length"
    first = ids(engine.generate(prompt, max_tokens=3))
    engine.model.transformer.calls.clear()
    assert ids(engine.generate(prompt, max_tokens=3)) == first
    assert engine.model.transformer.calls == [1, 1, 1]


def test_the_model_is_told_what_is_a_prompt(make_engine):
    """Also of one token: an approximate plan must not choose its neurons."""
    engine = make_engine()
    for prompt in ("x", "hello", "hello", "hello, again"):
        engine.model.transformer.spans.clear()
        list(engine.generate(prompt, max_tokens=4))
        lossless = [lossless for [(_, _, lossless)] in engine.model.transformer.spans]
        assert lossless == [True, False, False, False]


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

    def interrupt(batch):
        if len(engine.model.transformer.calls) > calls:
            raise KeyboardInterrupt

    engine.model.transformer.hook = interrupt
    with pytest.raises(KeyboardInterrupt):
        list(engine.generate("a rather long prompt", max_tokens=9))
    engine.model.transformer.hook = None
    for prompt in ("a rather long prompt", "a rather short one"):
        assert ids(engine.generate(prompt, max_tokens=9)) == ids(fresh.generate(prompt, max_tokens=9))


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
    assert told == [(0, 1201), (1, 1)]


def test_a_chat_hands_tools_and_variables_to_the_template(make_engine):
    engine = make_engine()
    told = {}
    engine.tokenizer.encode_chat = lambda messages, **variables: told.update(variables) or [1, 2]
    tools = [{"type": "function", "function": {"name": "f"}}]
    list(
        engine.chat(
            [{"role": "user", "content": "hi"}], tools=tools, template_variables={"n": 1}, max_tokens=1
        )
    )
    assert told == {"tools": tools, "n": 1}
