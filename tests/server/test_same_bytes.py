"""The same request and seed have the same answer alone and beside others, over all APIs, streamed or not."""

import json
import threading

import pytest

ASK = [{"role": "user", "content": "Tell me a story of a fox."}]
SEED = {"seed": 7, "temperature": 1.2, "top_p": 0.9}
OPTIONS = {"options": SEED | {"num_predict": 24}}
ASKS = {
    "/v1/chat/completions": {"messages": ASK, "max_tokens": 24} | SEED,
    "/v1/completions": {"max_tokens": 24} | SEED,
    "/v1/responses": {"input": "Tell me a story of a fox.", "max_output_tokens": 24} | SEED,
    "/v1/messages": {"messages": ASK, "max_tokens": 24} | SEED,
    "/api/chat": {"messages": ASK} | OPTIONS,
    "/api/generate": {"prompt": "Tell me a story of a fox."} | OPTIONS,
}


def text(path, answer):
    """The text of a whole answer."""
    match path:
        case "/v1/chat/completions":
            return answer["choices"][0]["message"]["content"]
        case "/v1/completions":
            return answer["choices"][0]["text"]
        case "/v1/responses":
            return answer["output"][0]["content"][0]["text"]
        case "/v1/messages":
            return answer["content"][0]["text"]
        case "/api/chat":
            return answer["message"]["content"]
    return answer["response"]


def piece(path, data):
    """The text of one event or line of a stream."""
    match path:
        case "/v1/chat/completions":
            return data["choices"][0]["delta"].get("content") or ""
        case "/v1/completions":
            return data["choices"][0]["text"]
        case "/v1/responses":
            return data["delta"] if data["type"] == "response.output_text.delta" else ""
        case "/v1/messages":
            return data.get("delta", {}).get("text", "")
        case "/api/chat":
            return data["message"]["content"]
    return data["response"]


def ask(server, path, stream=False):
    body = dict(ASKS[path])
    if path == "/v1/completions":
        rendered = server.http.post("/apply-template", json={"messages": ASK}).json()
        body["prompt"] = rendered["prompt"]
    answer = server.http.post(path, json=body | {"stream": stream})
    assert answer.status_code == 200, answer.text
    if not stream:
        return text(path, answer.json())
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines()]
    return "".join(piece(path, json.loads(line)) for line in lines if line.startswith("{"))


@pytest.mark.parametrize("others", [0, 3])
def test_the_same_text_everywhere(server, others):
    stop = threading.Event()

    def disturb(number):
        while not stop.is_set():
            body = {"prompt": f"{number} and a word or two " * 20, "max_tokens": 9, "temperature": 1}
            server.http.post("/v1/completions", json=body)

    threads = [threading.Thread(target=disturb, args=(i,)) for i in range(others)]
    for thread in threads:
        thread.start()
    try:
        texts = {(path, stream): ask(server, path, stream) for path in ASKS for stream in (False, True)}
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert len(set(texts.values())) == 1
    assert len(next(iter(texts.values()))) > 20
