"""Calls of tools, reasoning and constraints over all APIs. Faults have the numbers of users' reports."""

import json

import anthropic
import ollama
import openai
import pytest
from helpers.drafts import draft_as_usual
from helpers.running_server import Running
from scripted import say, scripted_engine

from hotset.server.models import Known

WEATHER = {
    "name": "weather",
    "description": "Tells the weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
TOOLS = [{"type": "function", "function": WEATHER}]
ASK = [{"role": "user", "content": "Weather?"}]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Nice"}}\n</tool_call>'
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Nice", "Lyon"]}},
    "required": ["city"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def qwen(model):
    running = Running([Known("q", None)], lambda _: scripted_engine(model, "qwen_3_5"))
    yield running
    running.close()


def openai_client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def chat(server, **options):
    given = {"model": "m", "messages": ASK, "tools": TOOLS, "temperature": 0}
    return openai_client(server).chat.completions.create(**given | options)


def test_a_call(hermes):
    say(hermes, CALL)
    choice = chat(hermes).choices[0]
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments) == {"city": "Nice"}
    assert not choice.message.content


def test_fault_15_16_17_calls_in_a_stream(hermes):
    """The finish reason is tool_calls; a name comes once, and ids are not empty and differ."""
    say(hermes, f"Let me see. {CALL}\n{CALL}")
    chunks = [chunk.choices[0] for chunk in chat(hermes, stream=True)]
    assert chunks[-1].finish_reason == "tool_calls"
    assert "".join(chunk.delta.content or "" for chunk in chunks).strip() == "Let me see."
    deltas = [call for chunk in chunks for call in chunk.delta.tool_calls or []]
    for index in (0, 1):
        own = [delta for delta in deltas if delta.index == index]
        assert [delta.function.name for delta in own if delta.function.name is not None] == ["weather"]
        assert [bool(delta.id) for delta in own] == [True] + [False] * (len(own) - 1)
        assert json.loads("".join(delta.function.arguments for delta in own)) == {"city": "Nice"}
    ids = [delta.id for delta in deltas if delta.id]
    assert len(set(ids)) == 2
    assert all(len(id) == 9 and id.isalnum() for id in ids)


def test_fault_14_text_streams_at_once_where_there_are_tools(hermes):
    say(hermes, "One two three four five six seven eight nine ten.")
    slow = hermes.transformer
    slow.hook = lambda batch: __import__("time").sleep(0.02)
    chunks = [c.choices[0].delta.content for c in chat(hermes, stream=True) if c.choices[0].delta.content]
    slow.hook = None
    assert len(chunks) > 5


def test_fault_18_a_call_gone_wrong_is_content(hermes):
    wrong = '<tool_call>\n{"name": "weather", "arguments": {"city": \n</tool_call>'
    say(hermes, wrong)
    choice = chat(hermes).choices[0]
    assert choice.finish_reason == "stop"
    assert choice.message.content.strip() == wrong
    assert not choice.message.tool_calls


def test_one_call_where_parallel_ones_are_not_wanted(hermes):
    say(hermes, f"{CALL}\n{CALL}\n{CALL}")
    assert len(chat(hermes).choices[0].message.tool_calls) == 3
    choice = chat(hermes, parallel_tool_calls=False).choices[0]
    assert len(choice.message.tool_calls) == 1
    assert choice.finish_reason == "tool_calls"
    hermes.idle()


def test_without_tools_a_call_is_text(hermes):
    say(hermes, CALL)
    assert chat(hermes, tool_choice="none").choices[0].message.content == CALL
    assert chat(hermes, tools=[]).choices[0].message.content == CALL


def test_fault_13_broken_arguments_in_the_history(hermes):
    say(hermes, "Hm.")
    call = {"id": "abc", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ni'}}
    history = [
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "abc", "content": "no"},
    ]
    assert chat(hermes, messages=history).choices[0].message.content == "Hm."


def test_calls_over_the_other_apis(hermes):
    say(hermes, CALL)
    client = anthropic.Anthropic(base_url=hermes.url, api_key="none", max_retries=0)
    tools = [{"name": "weather", "description": "Tells the weather.", "input_schema": WEATHER["parameters"]}]
    options = {"model": "m", "max_tokens": 60, "messages": ASK, "tools": tools}
    message = client.messages.create(**options)
    assert message.stop_reason == "tool_use"
    assert message.content[-1].input == {"city": "Nice"}
    with client.messages.stream(**options) as stream:
        assert stream.get_final_message().content[-1].input == {"city": "Nice"}
    host = ollama.Client(host=hermes.url)
    (call,) = host.chat("m", ASK, tools=TOOLS).message.tool_calls
    assert dict(call.function.arguments) == {"city": "Nice"}
    streamed = [part.message.tool_calls for part in host.chat("m", ASK, tools=TOOLS, stream=True)]
    assert sum(len(calls or ()) for calls in streamed) == 1
    response = openai_client(hermes).responses.create(
        model="m", input="Weather?", tools=[{"type": "function", **WEATHER, "strict": False}]
    )
    assert response.output[-1].type == "function_call"
    assert json.loads(response.output[-1].arguments) == {"city": "Nice"}


def test_reasoning_over_all_apis(qwen):
    say(qwen, "I think.\n</think>\n\nNice.")
    answer = chat(qwen).choices[0].message
    assert (answer.reasoning_content.strip(), answer.content) == ("I think.", "Nice.")
    deltas = [chunk.choices[0].delta for chunk in chat(qwen, stream=True)]
    thoughts = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
    assert thoughts.strip() == "I think."
    assert chat(qwen).usage.completion_tokens_details.reasoning_tokens > 1
    client = anthropic.Anthropic(base_url=qwen.url, api_key="none", max_retries=0)
    options = {"model": "m", "max_tokens": 60, "messages": ASK}
    kinds = [block.type for block in client.messages.create(**options).content]
    assert kinds == ["thinking", "text"]
    with client.messages.stream(**options) as stream:
        assert [block.type for block in stream.get_final_message().content] == kinds
    message = ollama.Client(host=qwen.url).chat("m", ASK).message
    assert (message.thinking.strip(), message.content) == ("I think.", "Nice.")
    response = openai_client(qwen).responses.create(model="m", input="Weather?")
    assert [item.type for item in response.output] == ["reasoning", "message"]
    kinds = [event.type for event in openai_client(qwen).responses.create(model="m", input="W", stream=True)]
    assert "response.reasoning_text.delta" in kinds
    assert "response.reasoning_text.done" in kinds


def test_thinking_may_be_turned_off(qwen):
    def prompt(**fields):
        return qwen.http.post("/apply-template", json={"messages": ASK} | fields).json()["prompt"]

    assert prompt().endswith("<think>\n")
    for off in (
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"enable_thinking": False},
        {"reasoning_effort": "none"},
    ):
        assert prompt(**off).endswith("<think>\n\n</think>\n\n")


def test_fault_9_all_types_of_response_format(server):
    for kind in ("text", "json_object"):
        body = {"messages": ASK, "max_tokens": 60, "temperature": 0, "response_format": {"type": kind}}
        answer = server.http.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200
    content = answer.json()["choices"][0]["message"]["content"]
    assert content.startswith("{")


def test_a_schema_is_kept_by_all_apis(server):
    client = openai_client(server)
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
    texts = [chat(server, tools=None, response_format=form, temperature=1).choices[0].message.content]
    stream = chat(server, tools=None, response_format=form, stream=True)
    texts.append("".join(chunk.choices[0].delta.content or "" for chunk in stream))
    text = {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}
    texts.append(client.responses.create(model="m", input="City?", text=text).output_text)
    texts.append(ollama.Client(host=server.url).chat("m", ASK, format=SCHEMA).message.content)
    for answer in texts:
        assert json.loads(answer)["city"] in ("Nice", "Lyon")
    body = {"messages": ASK, "grammar": 'root ::= "yes" | "no"'}
    said = server.http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
    assert said in ("yes", "no")
    body = {"prompt": "Count:", "guided_regex": "[0-9]{3}"}
    assert server.http.post("/v1/completions", json=body).json()["choices"][0]["text"].isdecimal()


@pytest.mark.parametrize(
    "form",
    [
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {}},
        {"type": "json_schema", "json_schema": {"schema": 3}},
        {"type": "json_schema", "json_schema": {"schema": {"type": "strange"}}},
        {"type": "json_schema", "json_schema": {"schema": {"type": "string", "pattern": "(?=x)y"}}},
        {
            "type": "json_schema",
            "json_schema": {"schema": {"type": "object", "propertyNames": {"minLength": 3}}},
        },
        {"type": "yaml"},
        {},
        "json",
    ],
)
def test_fault_10_a_schema_that_cannot_be_kept_is_refused(server, form):
    body = {"messages": ASK, "max_tokens": 5, "response_format": form}
    answer = server.http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith("response_format")


def test_fault_11_a_schema_holds_only_after_the_reasoning(qwen):
    say(qwen, 'Hm, a town.\n</think>\n\n{"city": "Lyon"}')
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    message = chat(qwen, tools=None, response_format=form).choices[0].message
    assert message.reasoning_content.strip() == "Hm, a town."
    assert json.loads(message.content) == {"city": "Lyon"}


def test_fault_12_a_named_tool_is_called(server):
    other = {"type": "function", "function": {"name": "other", "parameters": SCHEMA}}
    tools = [*TOOLS, other]
    named = {"type": "function", "function": {"name": "other"}}
    for options in ({"tool_choice": named}, {"tool_choice": named, "stream": True}):
        answer = chat(server, tools=tools, **options)
        if "stream" in options:
            chunks = [chunk.choices[0] for chunk in answer]
            deltas = [call for chunk in chunks for call in chunk.delta.tool_calls or []]
            names = [delta.function.name for delta in deltas if delta.function.name]
            arguments = "".join(delta.function.arguments for delta in deltas)
            reason = chunks[-1].finish_reason
        else:
            calls = answer.choices[0].message.tool_calls
            names, arguments = [call.function.name for call in calls], calls[0].function.arguments
            reason = answer.choices[0].finish_reason
        assert names == ["other"]
        assert json.loads(arguments)["city"] in ("Nice", "Lyon")
        assert reason == "tool_calls"
    client = anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)
    message = client.messages.create(
        model="m",
        max_tokens=200,
        messages=ASK,
        tools=[{"name": "other", "input_schema": SCHEMA}],
        tool_choice={"type": "any"},
    )
    assert message.content[0].name == "other"
    assert message.content[0].input["city"] in ("Nice", "Lyon")


@pytest.mark.parametrize(
    "fields",
    [
        {"tool_choice": "must"},
        {"tool_choice": "required"},
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "unknown"}}},
        {"tools": TOOLS, "tool_choice": {"type": "function"}},
    ],
)
def test_a_choice_that_cannot_be_is_refused(server, fields):
    answer = server.http.post("/v1/chat/completions", json={"messages": ASK, "max_tokens": 3} | fields)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith("tool_choice")


BOTH = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}
GENERIC = '{"name": "weather", "arguments": {"city": "Nice"}}'


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("text", "called"), [(GENERIC, True), ('{"city": "Lyon"}', False)])
def test_a_schema_beside_tools_leaves_an_answer_or_a_call(hermes, qwen, stream, text, called):
    for server, before in ((hermes, ""), (qwen, "I think.</think>")):
        say(server, before + text)
        answer = chat(server, response_format=BOTH, stream=stream)
        if stream:
            deltas = [chunk.choices[0].delta for chunk in answer if chunk.choices]
            calls = [call for delta in deltas for call in delta.tool_calls or []]
            content = "".join(delta.content or "" for delta in deltas)
            arguments = "".join(call.function.arguments for call in calls)
        else:
            message = answer.choices[0].message
            content = message.content or ""
            arguments = "".join(call.function.arguments for call in message.tool_calls or [])
        assert json.loads(arguments if called else content) == {"city": "Nice" if called else "Lyon"}
        assert not (content if called else arguments)


def test_beside_tools_neither_other_text_nor_other_rules_can_be(hermes):
    say(hermes, "No JSON at all, and then some more of it.")
    answer = chat(hermes, response_format=BOTH, max_tokens=40)
    message = answer.choices[0].message
    assert message.tool_calls or (message.content or "").startswith("{")
    with pytest.raises(openai.BadRequestError, match="leaves no room"):
        chat(hermes, extra_body={"guided_regex": "a+"})


def test_schemas_of_tools_may_refer_to_their_own_parts(server):
    city = {"type": "string", "enum": ["Nice", "Lyon"]}
    parameters = {
        "type": "object",
        "properties": {"from": {"$ref": "#/$defs/city"}, "default": {"$ref": "#/$defs/city"}},
        "required": ["from", "default"],
        "additionalProperties": False,
        "$defs": {"city": city},
    }
    tools = [{"type": "function", "function": {"name": "route", "parameters": parameters}}]
    route = {"type": "function", "function": {"name": "route"}}
    for more in ([], TOOLS):
        answer = chat(server, tools=[*more, *tools], tool_choice=route)
        found = json.loads(answer.choices[0].message.tool_calls[0].function.arguments)
        assert set(found.values()) <= {"Nice", "Lyon"}


def test_fault_33_drafts_within_calls_and_schemas(run_server, monkeypatch):
    """Each position of a draft is checked, so the same text comes with drafts and without."""
    draft_as_usual(monkeypatch)
    array = {"type": "array", "items": {"enum": ["Nice", "Lyon"]}, "minItems": 12, "maxItems": 12}
    schema = {"type": "object", "properties": {"cities": array}, "required": ["cities"]}
    schema["additionalProperties"] = False
    tool = {"type": "function", "function": {"name": "travel", "parameters": schema}}
    form = {"type": "json_schema", "json_schema": {"name": "cities", "schema": schema}}
    said = " ".join(f"city {i}: Nice, Lyon;" for i in range(20))
    common = {"messages": [{"role": "user", "content": f"{said} Repeat the cities."}], "max_tokens": 200}
    said_by = {}
    for speculate in (True, False):
        server = run_server(engine={"speculate": speculate})
        call = chat(server, tools=[tool], tool_choice="required", **common)
        text = chat(server, tools=[], response_format=form, **common)
        said_by[speculate] = (
            call.choices[0].message.tool_calls[0].function.arguments,
            text.choices[0].message.content,
        )
        drafts = [answer.usage.completion_tokens_details for answer in (call, text)]
        assert all((one.accepted_prediction_tokens > 0) == speculate for one in drafts)
    assert said_by[True] == said_by[False]
    assert all(len(json.loads(answer)["cities"]) == 12 for answer in said_by[True])


def test_log_probabilities_beside_reasoning_are_the_answers_alone(qwen):
    say(qwen, "Let me\n think.\n</think>\n\nIt is warm.")
    choice = chat(qwen, tools=[], logprobs=True).choices[0]
    assert (
        choice.message.content == "".join(token.token for token in choice.logprobs.content) == "It is warm."
    )
    chunks = [chunk.choices[0] for chunk in chat(qwen, tools=[], logprobs=True, stream=True)]
    streamed = [token.token for chunk in chunks if chunk.logprobs for token in chunk.logprobs.content]
    assert "".join(streamed) == "It is warm."


@pytest.mark.parametrize("text", ["<tool_call></tool_call>", "\n\n <tool_call>{} Well <", "<th> <think"])
def test_log_probabilities_of_text_that_might_have_been_a_mark(hermes, text):
    say(hermes, text)
    choice = chat(hermes, logprobs=True).choices[0]
    assert "".join(token.token for token in choice.logprobs.content) == choice.message.content == text


def test_a_rule_for_what_is_no_conversation_holds_from_the_first_token(qwen):
    """Where a prompt ends within reasoning, nobody takes that out of the text."""
    say(qwen, "abcdefgh")
    body = {"prompt": "Hm. <think>\n", "guided_regex": "[0-9]{3}", "temperature": 0, "max_tokens": 8}
    choice = qwen.http.post("/v1/completions", json=body).json()["choices"][0]
    assert choice["text"].isdecimal()
    assert (len(choice["text"]), choice["finish_reason"]) == (3, "stop")


def test_fault_24_bytes_that_are_no_text(hermes):
    """Emoji in pieces come whole, and bytes that are none as U+FFFD, in JSON that can be read."""
    tokenizer = hermes.engine.tokenizer
    singles = {tokenizer.token_bytes(id): id for id in range(tokenizer.vocab_size)}
    broken = [singles[bytes([byte])] for byte in "🦊".encode()]
    say(hermes, [*broken, *broken[:2], *tokenizer.encode("語", add_special=False), broken[0]])
    chunks = [chunk.choices[0] for chunk in chat(hermes, stream=True)]
    assert "".join(chunk.delta.content or "" for chunk in chunks) == "🦊\ufffd語\ufffd"
    assert chat(hermes, logprobs=True).choices[0].message.content == "🦊\ufffd語\ufffd"
