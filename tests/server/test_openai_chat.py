"""Chat completions, asked by OpenAI's own package and by hand."""

import json

import openai
import pytest

EIFFEL = [{"role": "user", "content": "Where is the Eiffel Tower?"}]


@pytest.fixture(scope="module")
def client(shared):
    return openai.OpenAI(base_url=f"{shared.url}/v1", api_key="none", max_retries=0)


def ask(client, **options):
    given = {"model": "smollm2", "messages": EIFFEL, "temperature": 0, "max_tokens": 20}
    return client.chat.completions.create(**given | options)


def events(server, body, path="/v1/chat/completions"):
    with server.http.stream("POST", path, json=body) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-accel-buffering"] == "no"
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1] if not line.startswith(":")]


def test_an_answer(server, client):
    answer = ask(client)
    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == "smollm2"
    assert answer.usage.prompt_tokens > 20
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert ask(client, max_tokens=3).choices[0].finish_reason == "length"


def test_a_stream_has_the_text_of_a_whole_answer(server, client):
    whole = ask(client)
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == whole.choices[0].message.content
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_the_chunks_of_a_stream(server):
    chunks = events(server, {"messages": EIFFEL, "stream": True, "max_tokens": 5, "temperature": 0})
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert all("role" not in delta for delta in deltas[1:])
    assert deltas[-1] == {}
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["length"]
    assert all("usage" not in chunk for chunk in chunks)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}


def test_choices_share_a_prompt_and_have_seeds_of_their_own(server, client):
    answer = ask(client, n=3, seed=5, temperature=1.5, max_tokens=12)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in answer.choices]
    assert len(set(texts)) > 1
    assert texts[0] == ask(client, seed=5, temperature=1.5, max_tokens=12).choices[0].message.content
    assert answer.usage.prompt_tokens == ask(client).usage.prompt_tokens
    streamed = {0: "", 1: "", 2: ""}
    for chunk in ask(client, n=3, seed=5, temperature=1.5, max_tokens=12, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert list(streamed.values()) == texts


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_add_up_to_the_content(server, client, stream):
    options = {"logprobs": True, "top_logprobs": 3, "max_tokens": 8, "stream": stream}
    if stream:
        chunks = [chunk.choices[0] for chunk in ask(client, **options)]
        text = "".join(chunk.delta.content or "" for chunk in chunks)
        tokens = [token for chunk in chunks if chunk.logprobs for token in chunk.logprobs.content]
    else:
        choice = ask(client, **options).choices[0]
        text, tokens = choice.message.content, choice.logprobs.content
    assert b"".join(bytes(token.bytes) for token in tokens).decode() == text
    for token in tokens:
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].token == token.token  # greedy
        assert token.logprob <= 0


def test_logprobs_have_no_token_of_the_answers_end(server, client):
    """A text that might have been a stop string's beginning comes with the token that ends the answer."""
    choice = ask(client, logprobs=True, stop="France, France. And").choices[0]
    assert choice.message.content.endswith("France, France.")
    assert "".join(token.token for token in choice.logprobs.content) == choice.message.content


def test_stop_strings_end_the_answer_and_are_not_in_it(server, client):
    whole = ask(client).choices[0].message.content
    stopped = ask(client, stop=["Paris"])
    assert stopped.choices[0].message.content == whole[: whole.index("Paris")]
    assert stopped.choices[0].finish_reason == "stop"
    text = "".join(c.choices[0].delta.content or "" for c in ask(client, stop="Paris", stream=True))
    assert text == whole[: whole.index("Paris")]


def test_a_biased_token_never_comes(server, client):
    paris = server.http.post("/tokenize", json={"content": " Paris"}).json()["tokens"]
    answer = ask(client, logit_bias={str(paris[0]): -100})
    assert "Paris" not in answer.choices[0].message.content


def test_parts_of_a_content_are_its_lines(server, client):
    parts = [{"type": "text", "text": "Where is the Eiffel"}, {"type": "text", "text": "Tower?"}]
    answers = [
        ask(client, messages=[{"role": "user", "content": content}]).choices[0].message.content
        for content in (parts, "Where is the Eiffel\nTower?")
    ]
    assert answers[0] == answers[1]


def test_a_last_assistant_message_is_continued(server, client):
    begun = [*EIFFEL, {"role": "assistant", "content": "It stands in"}]
    answer = ask(client, messages=begun).choices[0].message.content
    assert answer.startswith((" Paris", " the"))
    prompt = server.http.post("/apply-template", json={"messages": begun}).json()["prompt"]
    assert prompt.endswith("<|im_start|>assistant\nIt stands in")


def test_cached_tokens_are_reported(server, client):
    first = [{"role": "user", "content": "Tell me of the town of Lyon, please. " * 8}]
    answer = ask(client, messages=first)
    again = [
        *first,
        {"role": "assistant", "content": answer.choices[0].message.content},
        {"role": "user", "content": "And Nice?"},
    ]
    usage = ask(client, messages=again).usage
    assert usage.prompt_tokens_details.cached_tokens > 60
    assert usage.prompt_tokens > usage.prompt_tokens_details.cached_tokens


MALFORMED = [
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "hello"}, "messages"),
    ({"messages": [1]}, "messages[0]"),
    ({"messages": [{"content": "no role"}]}, "messages[0].role"),
    ({"messages": [{"role": "king", "content": ""}]}, "messages[0].role"),
    ({"messages": [{"role": ["user"], "content": ""}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": 2}, "top_p"),
    ({"n": 0}, "n"),
    ({"n": 1000}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_completion_tokens": "9"}, "max_completion_tokens"),
    ({"stop": [1]}, "stop"),
    ({"stream": "yes"}, "stream"),
    ({"seed": "x"}, "seed"),
    ({"logit_bias": {"a": 1}}, "logit_bias"),
    ({"logit_bias": {"5": "x"}}, "logit_bias"),
    ({"logit_bias": {"-5": 1}}, "logit_bias"),
    ({"top_logprobs": 3}, "logprobs"),
    ({"logprobs": True, "top_logprobs": 99}, "top_logprobs"),
    ({"tools": "all"}, "tools"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"stream_options": 3}, "stream_options"),
    ({"model": 3}, "model"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
]


@pytest.mark.parametrize(("change", "param"), MALFORMED)
def test_a_wrong_field_is_named(server, change, param):
    answer = server.http.post("/v1/chat/completions", json={"messages": EIFFEL, "max_tokens": 2} | change)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert param.split(".")[-1].split("[")[0] in error["message"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"messages": NaN}', b"[" * 100_000]
)
def test_a_body_that_is_no_object(server, body):
    answer = server.http.post("/v1/chat/completions", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize("depth", [50, 500, 900, 2000])
def test_a_body_that_is_nested_deeply(server, depth):
    """It is served, or refused as the client's fault; how deep is too deep is Python's to say."""
    nest = "[" * depth + "]" * depth
    for field in (f'"messages": [{{"role": "user", "content": "Hi", "x": {nest}}}]', f'"metadata": {nest}'):
        text = '{"messages": [{"role": "user", "content": "Hi"}], "input": "Hi", "max_tokens": 1, '
        body = f'{text} "max_output_tokens": 1, "chat_template_kwargs": {{"x": {nest}}}, {field}}}'
        for path in ("chat/completions", "responses"):
            answer = server.http.post(f"/v1/{path}", content=body)
            assert answer.status_code == (200 if depth == 50 else answer.status_code)
            assert answer.status_code in (200, 400)
            assert answer.status_code == 200 or "nested too deeply" in answer.json()["error"]["message"]


def test_a_number_that_is_too_large_for_json(server):
    answer = server.http.post("/v1/responses", content=b'{"input": "Hi", "metadata": {"x": 1e999}}')
    assert answer.status_code == 400
    assert "1e999" in answer.json()["error"]["message"]


@pytest.mark.parametrize("content", [None, "", " \n", []])
def test_a_last_message_of_the_assistant_that_is_empty(server, content):
    """There is nothing to continue: it is answered as if it were not there."""
    empty = [*EIFFEL, {"role": "assistant", "content": content}]
    prompts = [
        server.http.post("/apply-template", json={"messages": messages}).json()["prompt"]
        for messages in (EIFFEL, empty)
    ]
    assert prompts[0] == prompts[1]


def test_unknown_fields_and_nulls_are_ignored(server, client):
    extra = {
        "prompt_cache_key": "x",
        "store": True,
        "tools": None,
        "tool_choice": None,
        "stop": None,
        "n": None,
    }
    assert ask(client, extra_body=extra | {"verbosity": {"odd": []}}).choices[0].message.content


def test_errors_of_the_sdk(server, client):
    with pytest.raises(openai.BadRequestError, match="temperature"):
        ask(client, temperature=-3)
    with pytest.raises(openai.BadRequestError, match="tokens") as caught:
        ask(client, messages=[{"role": "user", "content": "many words " * 2000}])
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.body["n_ctx"] == 1024
    assert caught.value.body["n_prompt_tokens"] > 4000
    with pytest.raises(openai.InternalServerError) as unsupported:
        client.embeddings.create(model="smollm2", input="hello")
    assert unsupported.value.status_code == 501
    with pytest.raises(openai.NotFoundError):
        client.get("/nothing", cast_to=object)


def test_models(server, client):
    models = client.models.list()
    assert [model.id for model in models] == ["smollm2"]
    assert client.models.retrieve("smollm2").owned_by == "hotset"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_models_as_lm_studios_clients_ask(server):
    (model,) = server.http.get("/api/v0/models").json()["data"]
    assert (model["id"], model["state"], model["loaded_context_length"]) == ("smollm2", "loaded", 1024)
