"""Responses, asked by OpenAI's own package and by hand."""

import json

import openai
import pytest


@pytest.fixture(scope="module")
def client(shared):
    return openai.OpenAI(base_url=f"{shared.url}/v1", api_key="none", max_retries=0)


def ask(client, **options):
    given = {"model": "m", "input": "Where is the Eiffel Tower?", "temperature": 0, "max_output_tokens": 20}
    return client.responses.create(**given | options)


def test_a_response(server, client):
    response = ask(client)
    assert response.id.startswith("resp_")
    assert "Paris" in response.output_text
    assert response.status == "completed"
    assert response.output[0].id.startswith("msg_")
    assert response.output[0].content[0].annotations == []
    assert response.usage.output_tokens > 3
    cut = ask(client, max_output_tokens=2)
    assert cut.status == "incomplete"
    assert cut.incomplete_details.reason == "max_output_tokens"


def test_the_events_of_a_stream(server, client):
    whole = ask(client)
    events = list(ask(client, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    head, tail = kinds[:4], kinds[-4:]
    assert head == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert tail == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text == events[-1].response.output_text
    ids = {event.item_id for event in events if hasattr(event, "item_id")}
    assert ids == {events[-1].response.output[0].id}
    with client.responses.stream(model="m", input="Where is the Eiffel Tower?", temperature=0) as stream:
        assert stream.get_final_response().output_text == text


CODEX = {
    "model": "gpt-5-codex",
    "instructions": "You are a coding agent.",
    "input": [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Sandboxed."}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "List files."}]},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "ls"}]},
        {"type": "function_call", "name": "shell", "arguments": '{"command": ["ls"]}', "call_id": "c1"},
        {
            "type": "function_call_output",
            "call_id": "c1",
            "output": [{"type": "input_text", "text": "a.txt"}],
        },
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a.txt"}]},
        {"role": "user", "content": "Thanks"},
    ],
    "tools": [
        {"type": "function", "name": "shell", "parameters": {"type": "object"}, "strict": False},
        {"type": "custom", "name": "apply_patch"},
        {"type": "namespace", "name": "x"},
        {"type": "web_search"},
        {"type": "image_generation"},
    ],
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "reasoning": {"effort": "low", "summary": "auto"},
    "store": False,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "k",
    "stream": True,
    "max_output_tokens": 4,
}


def test_fault_21_what_codex_sends(server):
    """Tools of unknown types are left out, and a tool's output may be parts."""
    answer = server.http.post("/v1/responses", json=CODEX)
    assert answer.status_code == 200
    last = json.loads(answer.text.strip().split("data: ")[-1])
    assert last["type"] in ("response.completed", "response.incomplete")
    assert [tool["name"] for tool in last["response"]["tools"]] == ["shell"]
    probe = server.http.post("/v1/responses", json={"input": [], "max_output_tokens": 1})
    assert probe.status_code == 200


def test_items_become_messages():
    from hotset.server.fields import Fields
    from hotset.server.openai_responses import read_ask

    (conversation,) = read_ask(Fields(CODEX, "")).prompts
    assert [message["role"] for message in conversation.messages] == [
        *("system", "system", "user", "assistant", "tool", "assistant", "user")
    ]
    asked = conversation.messages[3]
    assert asked["reasoning_content"] == "ls"
    assert asked["tool_calls"][0]["id"] == "c1"
    assert conversation.messages[4]["content"] == "a.txt"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"type": "function_call"}]}, "input[0].name"),
        ({"input": 3}, "input"),
        ({"max_output_tokens": "x"}, "max_output_tokens"),
    ],
)
def test_a_wrong_field_is_named(server, body, param):
    answer = server.http.post("/v1/responses", json={"input": "hi"} | body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_parts_of_a_message_without_the_message(server):
    """They are the user's; what is no text is refused, and never left out."""
    counts = []
    for item in ({"type": "input_text", "text": "Hello there"}, {"role": "user", "content": "Hello there"}):
        answer = server.http.post("/v1/responses", json={"input": [item], "max_output_tokens": 1})
        counts.append(answer.json()["usage"]["input_tokens"])
    assert counts[0] == counts[1]
    picture = [{"type": "input_image", "image_url": "x"}]
    answer = server.http.post("/v1/responses", json={"input": picture, "max_output_tokens": 1})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input[0].type")
