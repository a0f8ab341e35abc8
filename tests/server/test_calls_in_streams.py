"""Calls in streams: several at once, and such that break off. The APIs' own packages put them together."""

import json

import anthropic
import ollama
import openai
import pytest
from helpers.running_server import Running
from scripted import say, scripted_engine
from test_tools_and_rules import ASK, CALL, TOOLS, WEATHER

from hotset.server import generation
from hotset.server.models import Known

CUT = 'Let me see. <tool_call>\n{"name": "weather", "arguments": {"city": "Ni'
WRONG = 'Let me see. <tool_call>\n{"name": "weather", "arguments": {"city": Nice}}\n</tool_call>'
LISTED = '<|tool_call_start|>[weather(city="Nice"), weather(city="Lyon")]<|tool_call_end|>'


@pytest.fixture(scope="module")
def lfm2(model):
    running = Running([Known("l", None)], lambda _: scripted_engine(model, "lfm2"))
    yield running
    running.close()


@pytest.fixture(params=[(CUT, 0), (f"{WRONG} {CALL}", 0), (f"{WRONG} {CALL}", 0.2)])
def broken(hermes, request, monkeypatch):
    """How many tokens the answer may have, in which a call breaks off; looks give one token, or most."""
    text, cadence = request.param
    monkeypatch.setattr(generation, "_CADENCE", cadence)
    say(hermes, text)
    return len(hermes.transformer.say[0]) - 1 if text == CUT else 200


def openai_client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def arguments(calls):
    return [json.loads(call.function.arguments) for call in calls or []]


def test_a_list_of_calls(lfm2):
    say(lfm2, LISTED)
    with openai_client(lfm2).chat.completions.stream(model="m", messages=ASK, tools=TOOLS) as stream:
        message = stream.get_final_completion().choices[0].message
    assert arguments(message.tool_calls) == [{"city": "Nice"}, {"city": "Lyon"}]
    assert len({call.id for call in message.tool_calls}) == 2


def test_chat_completions(hermes, broken):
    options = {"model": "m", "messages": ASK, "tools": TOOLS, "max_tokens": broken}
    client = openai_client(hermes)
    whole = client.chat.completions.create(**options).choices[0]
    chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**options, stream=True)]
    assert "".join(chunk.delta.content or "" for chunk in chunks) == whole.message.content
    assert chunks[-1].finish_reason == whole.finish_reason
    calls = {}
    for delta in [call for chunk in chunks for call in chunk.delta.tool_calls or []]:
        assert (delta.index in calls) == (delta.id is None)
        calls[delta.index] = calls.get(delta.index, "") + delta.function.arguments
    assert list(calls) == list(range(1 + len(whole.message.tool_calls or [])))  # the broken one is the first
    assert [json.loads(text) for text in list(calls.values())[1:]] == arguments(whole.message.tool_calls)


def test_messages(hermes, broken):
    client = anthropic.Anthropic(base_url=hermes.url, api_key="none", max_retries=0)
    tools = [{"name": "weather", "input_schema": WEATHER["parameters"]}]
    options = {"model": "m", "messages": ASK, "tools": tools, "max_tokens": broken}
    whole = client.messages.create(**options)
    kinds = {"text_delta": "text", "input_json_delta": "tool_use"}
    with client.messages.stream(**options) as stream:
        for event in stream:
            if event.type == "content_block_delta":
                block = stream.current_message_snapshot.content[event.index]
                assert block.type == kinds[event.delta.type]
        final = stream.get_final_message()
    first, call, *rest = final.content
    assert (first.type, call.type, rest[0].type) == ("text", "tool_use", "text")
    shown = [block.model_dump(exclude={"id", "parsed_output"}) for block in (first, *rest)]
    assert shown == [block.model_dump(exclude={"id", "parsed_output"}) for block in whole.content]
    assert final.stop_reason == whole.stop_reason


def test_responses(hermes, broken):
    client = openai_client(hermes)
    tools = [{"type": "function", **WEATHER, "strict": False}]
    options = {"model": "m", "input": "Weather?", "tools": tools, "max_output_tokens": broken}
    whole = client.responses.create(**options)
    with client.responses.stream(**options) as stream:
        events = list(stream)
    final = events[-1].response
    done = [event.item for event in events if event.type == "response.output_item.done"]
    items = [item.model_dump(mode="json", exclude_none=True) for item in final.output]
    assert items == [item.model_dump(mode="json", exclude_none=True) for item in done]
    texts = [""] * len(items)
    for event in events:
        if hasattr(event, "item_id"):
            assert event.item_id == items[event.output_index]["id"]
        if event.type.endswith(".delta"):
            texts[event.output_index] += event.delta
    given = [
        item.arguments if item.type == "function_call" else item.content[0].text for item in final.output
    ]
    assert texts == given
    assert [item["type"] for item in items[:3]] == ["message", "function_call", "message"]
    assert (final.status, final.output_text) == (whole.status, whole.output_text)
    statuses = [item["status"] for item in items]
    assert statuses[:2] == ["completed", "incomplete"]
    assert [statuses[0], *statuses[2:]] == [item.status for item in whole.output]


def test_ollama(hermes, broken):
    host = ollama.Client(host=hermes.url)
    options = {"model": "m", "messages": ASK, "tools": TOOLS, "options": {"num_predict": broken}}
    whole = host.chat(**options).message
    parts = [part.message for part in host.chat(**options, stream=True)]
    assert "".join(part.content or "" for part in parts) == whole.content
    assert [call for part in parts for call in part.tool_calls or []] == list(whole.tool_calls or [])
