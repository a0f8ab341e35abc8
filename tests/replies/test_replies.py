"""Reasoning, content and calls, by family; and what is none of them."""

import json
from itertools import pairwise

import pytest
from helpers.written_replies import NAMES, TAGGED, TOOLS, harmony
from hypothesis import given, settings
from hypothesis import strategies as st

from hotset.replies import (
    CallArguments,
    CallBegin,
    CallEnd,
    Content,
    Reasoning,
    Tool,
    collect,
    forced_parser_for,
    joined,
    parser_for,
    starts_inside,
)

HARMONY = "<|start|><|channel|>analysis<|message|>"
TEMPLATES = {written.name: written.template for written in TAGGED} | {"gpt-oss": HARMONY}
TEXTS = st.text(st.sampled_from("ab c\n{}[]<>|:\"'\\,=/é😀"), max_size=30)
WORDS = st.from_regex(r"[a-zé😀]+( [a-z,.]+){0,4}", fullmatch=True)
VALUES = {
    "city": TEXTS.filter(lambda text: '<|"|>' not in text),
    "days": st.integers(-5, 10**6),
    "exact": st.booleans(),
    "more": st.dictionaries(st.sampled_from(["a", "b_c"]), st.one_of(st.integers(), WORDS), max_size=2),
    "names": st.lists(st.one_of(st.none(), WORDS, st.floats(-1e3, 1e3)), max_size=3),
}
CALLS = st.lists(
    st.tuples(st.sampled_from(NAMES), st.fixed_dictionaries({}, optional=VALUES)), min_size=1, max_size=3
)


def parse(template, text, *, inside=False, tools=TOOLS, cuts=()):
    parser = parser_for(template, starts_inside=inside, tools=tools)
    return run(parser, text, cuts)


def run(parser, text, cuts=()):
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    events = [e for a, b in pairwise(edges) for e in parser.feed(text[a:b])]
    return joined(events + parser.end())


def without_ids(events):
    return [CallBegin(e.index, "", e.name) if isinstance(e, CallBegin) else e for e in events]


def calls_of(events):
    return [(call.name, json.loads(call.arguments)) for call in collect(events).calls]


@pytest.mark.parametrize("written", TAGGED, ids=lambda written: written.name)
@settings(max_examples=25, deadline=None)
@given(
    calls=CALLS,
    reasoning=st.one_of(st.none(), WORDS),
    content=st.one_of(st.just(""), WORDS),
    inside=st.booleans(),
    cuts=st.lists(st.integers(0, 400), max_size=12),
)
def test_each_family(written, calls, reasoning, content, inside, cuts):
    inside = inside and reasoning is not None and written.think is not None
    text = content + ("\n\n" if content else "") + written.calls(calls)
    if reasoning is not None and written.think:
        begin, end = written.think
        text = f"{'' if inside else begin}\n{reasoning}\n{end}\n\n{text}"
    events = parse(written.template, text, inside=inside, cuts=cuts)
    reply = collect(events)
    assert reply.reasoning == (reasoning or "" if written.think else "")
    assert reply.content == content
    assert calls_of(events) == calls
    assert len({call.id for call in reply.calls}) == len(calls)
    assert all(len(call.id) == 9 and call.id.isalnum() for call in reply.calls)
    whole = parse(written.template, text, inside=inside)
    assert without_ids(events) == without_ids(whole)
    if written.think:  # without tools nothing is a call
        assert calls_of(parse(written.template, text, inside=inside, tools=())) == []


@settings(max_examples=30, deadline=None)
@given(
    calls=CALLS,
    reasoning=st.one_of(st.just(""), WORDS),
    content=st.one_of(st.just(""), WORDS),
    cuts=st.lists(st.integers(0, 400), max_size=12),
)
def test_harmony(calls, reasoning, content, cuts):
    text = harmony(reasoning, content, calls)
    events = parse(HARMONY, text, cuts=cuts)
    reply = collect(events)
    assert (reply.reasoning, reply.content, calls_of(events)) == (reasoning, content, calls)
    assert without_ids(events) == without_ids(parse(HARMONY, text))


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=50, deadline=None)
@given(data=st.data(), inside=st.booleans(), cuts=st.lists(st.integers(0, 200), max_size=8))
def test_any_text_in_any_pieces(name, data, inside, cuts):
    template = TEMPLATES[name]
    marks = parser_for(template, starts_inside=False, tools=TOOLS).marks
    pieces = [
        *marks,
        '{"name": "weather", "arguments": {"city": "Bern"}}',
        "call:weather{",
        "weather(",
        "to=f",
    ]
    pieces += [mark[:3] for mark in marks]
    text = "".join(data.draw(st.lists(st.one_of(st.sampled_from(pieces), TEXTS), max_size=8)))
    events = parse(template, text, inside=inside, cuts=cuts)
    assert without_ids(events) == without_ids(parse(template, text, inside=inside))
    begun = {}
    for event in events:
        match event:
            case CallBegin(index):
                assert index == len(begun)
                begun[index] = ""
            case CallArguments(index, piece):
                begun[index] += piece
            case CallEnd(index, broken):
                if not broken:
                    assert isinstance(json.loads(begun[index]), dict)
    if not begun:  # nothing is lost
        given_back = "".join(event.text for event in events if isinstance(event, Content | Reasoning))
        rest = text
        for mark in marks:
            rest, given_back = rest.replace(mark, ""), given_back.replace(mark, "")
        if name != "gpt-oss":  # headers are no text
            assert "".join(given_back.split()) == "".join(rest.split())


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_text_without_marks_comes_as_it_is(name):
    text = "  A <b>text</b>, [1] | {x}: \n\n1 < 2.\n "
    assert parse(TEMPLATES[name], text) == [Content(text)]


def test_text_is_given_at_once():
    parser = parser_for("<think></think><tool_call>", starts_inside=False, tools=TOOLS)
    assert parser.feed("Hello") == [Content("Hello")]
    assert parser.feed(" <tool") == []
    assert parser.feed("box> ") == [Content(" <toolbox>")]


def test_arguments_stream():
    parser = parser_for("<tool_call>", starts_inside=False, tools=TOOLS)
    begin, arguments = parser.feed('<tool_call>{"name": "weather", "arguments": {"city": "Be')
    assert (begin.name, arguments.text) == ("weather", '{"city": "Be')
    assert parser.feed('rn\n"') == [CallArguments(0, 'rn\\u000a"')]
    assert parser.feed("}}") == [CallArguments(0, "}"), CallEnd(0)]
    assert parser.feed("</tool_call>") + parser.end() == []


def test_texts_between_tags_stream():
    parser = parser_for("<tool_call><function=", starts_inside=False, tools=TOOLS)
    parser.feed("<tool_call>\n<function=weather>\n<parameter=city>\n")
    assert parser.feed('Be"\n') == [CallArguments(0, 'Be\\"')]
    assert parser.feed("rn\n</para") == [CallArguments(0, "\\nrn")]
    assert joined(parser.feed("meter>\n</function>")) == [CallArguments(0, '"}'), CallEnd(0)]


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("<tool_call>", '<tool_call>{"name": "weather", "arguments": "Bern"}</tool_call> Sorry.'),
        ("<tool_call>", "<tool_call>weather(Bern)</tool_call>"),
        ("<tool_call><function=", "<tool_call><function weather></function></tool_call>"),
        ("<start_header_id|><|python_tag|>", '{"name": "unknown", "parameters": {}}'),
        ("<|python_tag|>", '{"answer": 42}'),
    ],
)
def test_what_is_no_call_is_content(template, text):
    events = parse(template, text)
    assert events == [Content(text)]


def test_a_call_that_breaks_off():
    text = '<tool_call>{"name": "weather", "arguments": {"city": Bern}}</tool_call>'
    events = parse("<tool_call>", text)
    assert isinstance(events[0], CallBegin)
    assert events[2] == CallEnd(0, text[: text.index("B")])
    assert collect(events).content == text
    assert collect(events).calls == ()


def test_control_marks_are_never_shown():
    assert parse("[TOOL_CALLS]", "[TOOL_CALLS]oh no") == [Content("oh no")]


def test_values_without_types():
    text = "<tool_call><function=f>" + "".join(
        f"<parameter={k}>\n{v}\n</parameter>"
        for k, v in {"a": "1", "b": "True", "c": "x y", "d": "[1]"}.items()
    )
    assert calls_of(parse("<tool_call><function=", text + "</function></tool_call>")) == [
        ("f", {"a": 1, "b": True, "c": "x y", "d": [1]})
    ]


def test_types_that_are_none_say_nothing():
    schema = {"properties": {"a": {"type": None}, "b": {"type": 3}, "c": {"type": [None, "string"]}}}
    text = "<tool_call><function=f>" + "".join(
        f"<parameter={name}>\n1\n</parameter>" for name in schema["properties"]
    )
    found = parse("<tool_call><function=", text + "</function></tool_call>", tools=[Tool("f", schema)])
    assert calls_of(found) == [("f", {"a": 1, "b": 1, "c": "1"})]


def test_where_reasoning_begins():
    qwen = "{{ '<think>' }}</think>"
    assert starts_inside(qwen, "<|im_start|>assistant\n<think>\n")
    assert not starts_inside(qwen, "<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert not starts_inside("no such thing", "<think>")
    assert not starts_inside(HARMONY, "<|start|>assistant")
    assert parse(qwen, "hm</think>\n\nYes", inside=True) == [Reasoning("hm"), Content("Yes")]
    assert parse(qwen, "Write <think> in HTML") == [Content("Write <think> in HTML")]


def test_harmony_preamble_and_plain_text():
    text = (
        "<|channel|>commentary<|message|>Let me see.<|end|><|start|>assistant to=functions.weather"
        '<|channel|>commentary json<|message|>{"city": "Bern"}'
    )
    events = parse(HARMONY, text)
    assert events[0] == Content("Let me see.")
    assert calls_of(events) == [("weather", {"city": "Bern"})]
    assert parse(HARMONY, "to be or not") == [Content("to be or not")]
    two = "<|channel|>commentary<|message|>A<|end|><|start|>assistant<|channel|>final<|message|>B"
    assert parse(HARMONY, two) == [Content("A\n\nB")]


@pytest.mark.parametrize("template", ["<think></think>", ""])
def test_forced_calls(template):
    parser = forced_parser_for(template, starts_inside=False, tools=TOOLS)
    text = '{"name": "weather", "arguments": {"city": "Bern"}}'
    assert calls_of(run(parser, text)) == [("weather", {"city": "Bern"})]


def test_python_of_llama():
    text = '<|python_tag|>weather.call(city="Bern", days=2)'
    assert calls_of(parse("<|python_tag|>", text)) == [("weather", {"city": "Bern", "days": 2})]
    assert parse("<|python_tag|>", "<|python_tag|>import os") == [Content("import os")]


@pytest.mark.parametrize("tools", [(), TOOLS])
@settings(max_examples=25, deadline=None)
@given(content=WORDS, reasoning=WORDS, cuts=st.lists(st.integers(0, 200), max_size=12))
def test_cohere_puts_marks_around_its_text(tools, content, reasoning, cuts):
    template = TEMPLATES["Cohere"]
    text = f"{reasoning}<|END_THINKING|><|START_TEXT|>{content}<|END_TEXT|>"
    reply = collect(parse(template, text, inside=True, tools=tools, cuts=cuts))
    assert (reply.reasoning, reply.content, reply.calls) == (reasoning, content, ())
