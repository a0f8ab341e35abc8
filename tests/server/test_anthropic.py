"""Messages, asked by Anthropic's own package and by hand."""

import json

import anthropic
import pytest

EIFFEL = [{"role": "user", "content": "Where is the Eiffel Tower?"}]


@pytest.fixture(scope="module")
def client(shared):
    return anthropic.Anthropic(base_url=shared.url, api_key="none", max_retries=0)


def ask(client, **options):
    given = {"model": "smollm2", "messages": EIFFEL, "max_tokens": 20, "extra_body": {"temperature": 0}}
    return client.messages.create(**given | options)


def test_a_message(server, client):
    message = ask(client)
    assert message.type == "message"
    assert message.role == "assistant"
    assert message.id.startswith("msg_")
    assert "Paris" in message.content[0].text
    assert message.stop_reason == "end_turn"
    assert message.usage.input_tokens + message.usage.cache_read_input_tokens > 20
    assert ask(client, max_tokens=2).stop_reason == "max_tokens"
    stopped = ask(client, stop_sequences=["Paris"])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "Paris")
    assert "Paris" not in stopped.content[0].text


def test_a_stream(server, client):
    whole = ask(client)
    options = {"model": "m", "messages": EIFFEL, "max_tokens": 20, "extra_body": {"temperature": 0}}
    with client.messages.stream(**options) as stream:
        assert "".join(stream.text_stream) == whole.content[0].text
        final = stream.get_final_message()
    assert final.content[0].text == whole.content[0].text
    assert final.stop_reason == "end_turn"
    assert final.usage.output_tokens == whole.usage.output_tokens


def test_the_events_of_a_stream(server):
    body = {"messages": EIFFEL, "max_tokens": 4, "stream": True, "temperature": 0}
    answer = server.http.post("/v1/messages?beta=true", json=body, headers={"anthropic-beta": "x"})
    blocks = [block.split("\n") for block in answer.text.strip().split("\n\n")]
    names = [block[0].removeprefix("event: ") for block in blocks]
    data = [json.loads(block[1].removeprefix("data: ")) for block in blocks]
    assert names == [one["type"] for one in data]
    start, open, *deltas, close, last, stop = names
    assert [start, open, close] == ["message_start", "content_block_start", "content_block_stop"]
    assert set(deltas) == {"content_block_delta"}
    assert [last, stop] == ["message_delta", "message_stop"]
    assert data[0]["message"]["content"] == []
    assert data[-2]["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    assert data[-2]["usage"]["output_tokens"] == 4


def test_counting_tokens(server, client):
    count = client.messages.count_tokens(model="m", messages=EIFFEL, system="Be brief.").input_tokens
    usage = ask(client, system="Be brief.").usage
    assert count == usage.input_tokens + usage.cache_read_input_tokens


def test_blocks_of_all_kinds_reach_the_template(server):
    from hotset.server.anthropic import read_conversation
    from hotset.server.fields import Fields

    body = {
        "system": [{"type": "text", "text": "You help."}, {"type": "text", "text": "Be brief."}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "I ask.", "signature": ""},
                    {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Nice"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": "c1",
                        "content": [{"type": "text", "text": "sun"}],
                    },
                    {"type": "tool_result", "tool_use_id": "c2", "content": "none", "is_error": True},
                    {"type": "text", "text": "And?"},
                ],
            },
        ],
        "tools": [
            {"name": "weather", "input_schema": {"type": "object"}},
            {"type": "web_search_20250305", "name": "web_search"},
        ],
    }
    made = read_conversation(Fields(body, ""))
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Nice"}}}
    assert made.messages == [
        {"role": "system", "content": "You help.\nBe brief."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "I ask."},
        {"role": "tool", "tool_call_id": "c1", "content": "sun"},
        {"role": "tool", "tool_call_id": "c2", "content": "Error: none"},
        {"role": "user", "content": "And?"},
    ]
    assert [tool["function"]["name"] for tool in made.tools] == ["weather"]
    assert server.http.post("/v1/messages", json=body | {"max_tokens": 2}).status_code == 200


def test_errors_have_anthropics_shape(server, client):
    with pytest.raises(anthropic.BadRequestError) as caught:
        ask(client, messages=[])
    assert caught.value.body["type"] == "error"
    assert caught.value.body["error"]["type"] == "invalid_request_error"
    with pytest.raises(anthropic.BadRequestError, match="text only"):
        ask(client, messages=[{"role": "user", "content": [{"type": "image", "source": {}}]}])
    for body in ({"messages": [{"role": "user", "content": [{"type": "tool_use"}]}]}, {"messages": [[]]}, {}):
        assert server.http.post("/v1/messages", json=body).status_code == 400
