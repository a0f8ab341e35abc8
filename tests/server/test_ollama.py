"""Ollama's API, asked by its own package and by hand."""

import json

import ollama
import pytest

EIFFEL = [{"role": "user", "content": "Where is the Eiffel Tower?"}]
GREEDY = {"temperature": 0, "num_predict": 20}


@pytest.fixture(scope="module")
def client(shared):
    return ollama.Client(host=shared.url)


def test_a_chat(server, client):
    answer = client.chat("smollm2:latest", EIFFEL, options=GREEDY)
    assert "Paris" in answer.message.content
    assert answer.done
    assert answer.done_reason == "stop"
    assert answer.prompt_eval_count > 20
    assert answer.total_duration >= answer.eval_duration > 0
    pieces = list(client.chat("smollm2", EIFFEL, options=GREEDY, stream=True))
    assert "".join(piece.message.content for piece in pieces) == answer.message.content
    assert [piece.done for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert pieces[-1].eval_count == answer.eval_count


def test_generate(server, client):
    answer = client.generate("m", "Where is the Eiffel Tower?", options=GREEDY)
    assert answer.response == client.chat("m", EIFFEL, options=GREEDY).message.content
    raw = client.generate("m", "The capital of France is", raw=True, options=GREEDY)
    assert "Paris" in raw.response
    cut = client.generate("m", "Hello", options={"num_predict": 1})
    assert cut.done_reason == "length"
    assert client.generate("m", "").done_reason == "load"


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs(server, client, stream):
    options = {"options": GREEDY, "logprobs": True, "top_logprobs": 2, "stream": stream}
    for answer in (
        client.chat("m", EIFFEL, **options),
        client.generate("m", EIFFEL[0]["content"], **options),
    ):
        lines = list(answer) if stream else [answer]
        tokens = [token for line in lines for token in line.logprobs or []]
        said = "".join(
            getattr(line, "response", None) or line.message.content for line in lines if not line.done
        )
        if not stream:
            said = answer.response if hasattr(answer, "response") else answer.message.content
        assert "".join(token.token for token in tokens) == said != ""
        assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in tokens)


def test_streams_are_lines_and_the_default(server):
    answer = server.http.post("/api/chat", json={"messages": EIFFEL, "options": GREEDY})
    assert answer.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert lines[-1]["done"]
    assert all(line["created_at"].endswith("Z") for line in lines)


def test_models(server, client):
    assert [model.model for model in client.list().models] == ["smollm2"]
    assert [model.model for model in client.ps().models] == ["smollm2"]
    assert "completion" in client.show("smollm2").capabilities
    assert server.http.get("/api/version").json()["version"]
    assert server.http.head("/").status_code == 200


def test_errors_are_texts(server, client):
    with pytest.raises(ollama.ResponseError, match="temperature") as caught:
        client.chat("m", EIFFEL, options={"temperature": -1})
    assert caught.value.status_code == 400
    with pytest.raises(ollama.ResponseError, match="embeddings"):
        client.embed("m", "hello")
    with pytest.raises(ollama.ResponseError, match="tokens"):
        client.generate("m", "many words " * 2000)
    long = server.http.post("/api/generate", json={"prompt": "many words " * 2000})
    assert isinstance(long.json()["error"], str)
