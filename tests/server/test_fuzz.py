"""Malformed requests: no 5xx, no hang, and the next request works."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FIELDS = {
    "/v1/chat/completions": (
        "messages",
        "tools",
        "tool_choice",
        "response_format",
        "stop",
        "logit_bias",
        "n",
    ),
    "/v1/completions": ("prompt", "stop", "logprobs", "echo", "n", "suffix", "grammar", "guided_regex"),
    "/v1/responses": ("input", "instructions", "tools", "tool_choice", "text", "reasoning"),
    "/v1/messages": ("messages", "system", "tools", "tool_choice", "thinking", "stop_sequences"),
    "/v1/messages/count_tokens": ("messages", "system", "tools"),
    "/api/chat": ("messages", "tools", "format", "options", "think", "keep_alive"),
    "/api/generate": ("prompt", "system", "format", "options", "images", "raw"),
    "/api/show": ("name",),
    "/tokenize": ("content", "add_special", "with_pieces"),
    "/detokenize": ("tokens",),
    "/apply-template": ("messages", "tools", "chat_template_kwargs"),
    "/v1/embeddings": ("input", "dimensions", "encoding_format"),
    "/api/embed": ("input", "dimensions"),
    "/infill": ("input_prefix", "input_suffix", "input_extra", "prompt", "n_predict"),
}
SHARED = ("model", "stream", "seed", "temperature", "top_p", "top_k", "min_p", "stream_options", "logprobs")
WORDS = st.sampled_from(
    (
        *[
            "user",
            "assistant",
            "system",
            "tool",
            "function",
            "text",
            "json_object",
            "json_schema",
            "auto",
            "required",
            "none",
            "image_url",
        ],
        *[
            "tool_use",
            "tool_result",
            "function_call",
            "reasoning",
            "message",
            "<|im_end|>",
            "-1",
            "1e999",
            "[",
            "(?=x)",
        ],
        *("", "\ud800", "\x00", "root ::= "),
    )
)
NUMBERS = st.sampled_from([0, 1, -1, 2, 0.5, 1e308, -1e308, 10**30, 2**63, 1e-320, True, False, None])
KEYS = st.sampled_from(
    [
        "role",
        "content",
        "type",
        "text",
        "name",
        "function",
        "arguments",
        "parameters",
        "schema",
        "input",
        "json_schema",
        "tool_calls",
        "id",
        "call_id",
        "output",
        "num_predict",
        "temperature",
        "format",
        "seed",
        "stop",
        "enum",
        "pattern",
        "properties",
        "$ref",
        "items",
        "tool_use_id",
        "input_schema",
    ]
)
VALUES = st.recursive(
    WORDS | NUMBERS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)
MESSAGE = st.fixed_dictionaries({"role": WORDS, "content": WORDS | VALUES}, optional={"tool_calls": VALUES})
TOOL = st.fixed_dictionaries(
    {"type": WORDS, "function": VALUES, "name": WORDS}, optional={"input_schema": VALUES}
)
SHORT = {"max_tokens": 2, "max_output_tokens": 2, "options": {"num_predict": 2}}


@st.composite
def requests(draw):
    path = draw(st.sampled_from(sorted(FIELDS)))
    if draw(st.integers(0, 19)) == 0:
        return path, draw(st.binary(max_size=40))
    names = draw(st.lists(st.sampled_from((*FIELDS[path], *SHARED)), max_size=4, unique=True))
    body = dict(SHORT)
    if "messages" in FIELDS[path]:
        body["messages"] = draw(st.lists(MESSAGE, max_size=3) | VALUES)
    for name in names:
        special = {
            "messages": st.lists(MESSAGE | VALUES, max_size=3),
            "tools": st.lists(TOOL | VALUES, max_size=2),
        }
        body[name] = draw(special.get(name, VALUES))
    options = body.get("options")
    if isinstance(options, dict):  # whatever else it is, it is short
        options.setdefault("num_predict", 2)
    return path, json.dumps(body).encode()


def check(server, request):
    path, body = request
    answer = server.http.post(path, content=body, headers={"content-type": "application/json"}, timeout=20)
    assert answer.status_code in (200, 400, 404, 501), (body, answer.text)
    if answer.status_code == 200 and not answer.text.startswith("{"):
        assert '"error"' not in answer.text, body
    elif answer.status_code != 200:
        assert answer.json()["error"]


def alive(server):
    answer = server.http.post("/v1/completions", json={"prompt": "Hi", "max_tokens": 1})
    assert answer.status_code == 200


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(requests())
def fuzz(server, request):
    check(server, request)


def test_malformed_requests(shared):
    fuzz(shared)
    alive(shared)


@pytest.mark.slow
def test_ten_thousand_malformed_requests(shared):
    settings(max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck))(
        given(requests())(lambda request: check(shared, request))
    )()
    alive(shared)
