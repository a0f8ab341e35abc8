"""Codex and Claude Code: their requests as they document them, and the events that they wait for."""

import json

import pytest
from helpers.running_server import Running
from scripted import say, scripted_engine

from hotset.server.models import Known

CALL = '<tool_call>\n{"name": "%s", "arguments": %s}\n</tool_call>'
CODEX = {
    "model": "gpt-5-codex",
    "instructions": "You are Codex, a coding agent. " * 40,
    "tools": [
        {
            "type": "function",
            "name": "shell",
            "description": "Runs a command.",
            "strict": False,
            "parameters": {
                "type": "object",
                "properties": {
                    "command": {"type": "array", "items": {"type": "string"}},
                    "workdir": {"type": "string"},
                    "timeout_ms": {"type": "number"},
                },
                "required": ["command"],
                "additionalProperties": False,
            },
        },
        {
            "type": "custom",
            "name": "apply_patch",
            "format": {"type": "grammar", "syntax": "lark", "definition": "start: /.+/"},
        },
        {"type": "web_search", "external_web_access": True},
        {"type": "namespace", "name": "mcp", "tools": []},
    ],
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "reasoning": {"effort": "medium", "summary": "auto"},
    "store": False,
    "stream": True,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "0199",
    "text": {"verbosity": "low"},
}
CLAUDE = {
    "model": "claude-sonnet-4-5",
    "max_tokens": 32000,
    "stream": True,
    "system": [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.36; cch=00000;"},
        {"type": "text", "text": "You are Claude Code. " * 40, "cache_control": {"type": "ephemeral"}},
    ],
    "tools": [
        {
            "name": "Bash",
            "description": "Runs a command.",
            "input_schema": {
                "$schema": "https://json-schema.org/draft/2020-12/schema",
                "type": "object",
                "properties": {"command": {"type": "string"}, "timeout": {"type": "number"}},
                "required": ["command"],
                "additionalProperties": False,
            },
            "cache_control": {"type": "ephemeral"},
        },
        {"type": "web_search_20250305", "name": "web_search", "max_uses": 8},
    ],
    "metadata": {"user_id": "user_0_account__session_1"},
    "thinking": {"type": "adaptive"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "output_config": {"effort": "high"},
}
HEADERS = {
    "anthropic-version": "2023-06-01",
    "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14",
    "authorization": "Bearer none",
    "x-app": "cli",
}


@pytest.fixture
def hermes(model):
    running = Running([Known("h", None)], lambda _: scripted_engine(model, "hermes_tools"))
    yield running
    running.close()


def events(server, path, body, **headers):
    """An answer's events; each has its name in the line before, and its data."""
    answer = server.http.post(path, json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    found = []
    for part in answer.text.strip().split("\n\n"):
        name, data = part.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def user(text):
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}


def test_codex_calls_a_tool_and_goes_on(hermes):
    say(hermes, "I look." + CALL % ("shell", '{"command": ["ls"]}'), "There is a.txt.")
    asked = [user("<environment_context/>"), user("List files.")]
    first = events(hermes, "/v1/responses", CODEX | {"input": asked}, conversation_id="c", session_id="s")
    kinds = [event["type"] for event in first if not event["type"].endswith(".delta")]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event["sequence_number"] for event in first] == list(range(len(first)))
    message, call = first[-1]["response"]["output"]
    assert message["content"][0]["text"] == "I look."
    assert (call["type"], call["name"]) == ("function_call", "shell")
    assert json.loads(call["arguments"]) == {"command": ["ls"]}
    assert first[-1]["response"]["usage"]["total_tokens"] > 400

    # Codex sends back what it was given, with null where it keeps nothing.
    again = [
        *asked,
        {"type": "reasoning", "summary": [], "content": None, "encrypted_content": None},
        {**message, "id": None},
        {"type": "function_call", "id": None, **{k: call[k] for k in ("name", "arguments", "call_id")}},
        {
            "type": "function_call_output",
            "call_id": call["call_id"],
            "output": json.dumps({"output": "a.txt\n", "metadata": {"exit_code": 0}}),
        },
    ]
    second = events(hermes, "/v1/responses", CODEX | {"input": again})
    assert second[-1]["type"] == "response.completed"
    assert second[-1]["response"]["output"][0]["content"][0]["text"] == "There is a.txt."
    assert second[-1]["response"]["usage"]["input_tokens_details"]["cached_tokens"] > 400


def test_claude_code_calls_a_tool_and_goes_on(hermes):
    say(hermes, "I look." + CALL % ("Bash", '{"command": "ls"}'), "There is a.txt.")
    asked = [{"role": "user", "content": [{"type": "text", "text": "List files."}]}]
    path = "/v1/messages?beta=true"
    first = events(hermes, path, CLAUDE | {"messages": asked}, **HEADERS)
    kinds = [(event["type"], event.get("index")) for event in first if event["type"] != "content_block_delta"]
    assert kinds == [
        ("message_start", None),
        ("content_block_start", 0),
        ("content_block_stop", 0),
        ("content_block_start", 1),
        ("content_block_stop", 1),
        ("message_delta", None),
        ("message_stop", None),
    ]
    assert first[0]["message"]["usage"]["input_tokens"] > 200
    assert first[-2]["delta"]["stop_reason"] == "tool_use"
    call = next(e["content_block"] for e in first if e.get("content_block", {}).get("type") == "tool_use")
    deltas = [event["delta"] for event in first if event["type"] == "content_block_delta"]
    pieces = [delta["partial_json"] for delta in deltas if delta["type"] == "input_json_delta"]
    assert (call["name"], call["input"]) == ("Bash", {})
    assert json.loads("".join(pieces)) == {"command": "ls"}

    used = {"type": "tool_use", "id": call["id"], "name": "Bash", "input": {"command": "ls"}}
    result = {"type": "tool_result", "tool_use_id": call["id"], "content": "a.txt", "is_error": False}
    asked += [
        {"role": "assistant", "content": [{"type": "text", "text": "I look."}, used]},
        {"role": "user", "content": [result | {"cache_control": {"type": "ephemeral"}}]},
        {"role": "system", "content": "The todo list is empty."},
    ]
    changed = [{"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.36; cch=a9f31;"}]
    body = CLAUDE | {"messages": asked, "system": [*changed, CLAUDE["system"][1]]}
    second = events(hermes, path, body, **HEADERS)
    assert second[-2]["usage"]["cache_read_input_tokens"] > 200
    assert second[-2]["delta"]["stop_reason"] == "end_turn"


def test_what_claude_code_asks_besides(hermes):
    assert hermes.http.head("/").status_code == 200
    assert hermes.http.get("/v1/models?limit=1000", headers=HEADERS).status_code == 200
    counted = {key: CLAUDE[key] for key in ("model", "system", "tools")}
    counted["messages"] = [{"role": "user", "content": "foo"}]
    count = hermes.http.post("/v1/messages/count_tokens?beta=true", json=counted, headers=HEADERS)
    assert count.json()["input_tokens"] > 200
    say(hermes, "x")
    quota = {"model": "claude-haiku", "max_tokens": 1, "messages": [{"role": "user", "content": "quota"}]}
    answer = hermes.http.post("/v1/messages?beta=true", json=quota, headers=HEADERS)
    assert answer.json()["stop_reason"] == "max_tokens"


def test_claude_code_asks_for_a_title_by_a_schema(server):
    schema = {
        "type": "object",
        "properties": {"title": {"type": "string", "maxLength": 12}},
        "required": ["title"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "schema": schema}
    asked = {"messages": [{"role": "user", "content": "A talk of fish."}], "max_tokens": 60, "temperature": 0}
    for fields in ({"output_config": {"format": form}}, {"output_format": form}):
        answer = server.http.post("/v1/messages", json=asked | fields, headers=HEADERS).json()
        assert list(json.loads(answer["content"][0]["text"])) == ["title"]
    wrong = {"output_config": {"format": {"type": "json_schema"}}}
    answer = server.http.post("/v1/messages", json=asked | wrong)
    assert answer.status_code == 400
    assert "output_config.format.schema" in answer.text
