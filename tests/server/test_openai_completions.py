"""The older completions."""

import openai
import pytest


@pytest.fixture(scope="module")
def client(shared):
    return openai.OpenAI(base_url=f"{shared.url}/v1", api_key="none", max_retries=0)


def complete(client, prompt="The capital of France is", **options):
    return client.completions.create(
        **{"model": "m", "prompt": prompt, "temperature": 0, "max_tokens": 8} | options
    )


def test_a_text_is_continued(server, client):
    whole = complete(client)
    assert "Paris" in whole.choices[0].text
    chunks = list(complete(client, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == whole.choices[0].text
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert complete(client, echo=True).choices[0].text == "The capital of France is" + whole.choices[0].text


def test_ids_lists_and_several_prompts(server, client):
    text = complete(client).choices[0].text
    ids = server.http.post("/tokenize", json={"content": "The capital of France is"}).json()["tokens"]
    assert complete(client, ids).choices[0].text == text
    both = complete(client, ["The capital of France is", "1, 2, 3,"], n=2)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in both.choices[:2]] == [text, text]
    assert both.choices[2].text.startswith(" 4")
    assert complete(client, [ids, ids]).choices[1].text == text


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_have_the_older_shape(server, client, stream):
    answer = complete(client, logprobs=2, stream=stream)
    choices = [chunk.choices[0] for chunk in answer] if stream else [answer.choices[0]]
    found = [choice.logprobs for choice in choices if choice.logprobs]
    text = "".join(choice.text for choice in choices)
    assert "".join(token for one in found for token in one.tokens) == text
    offsets = [offset for one in found for offset in one.text_offset]
    tokens = [token for one in found for token in one.tokens]
    assert offsets == [len("".join(tokens[:i])) for i in range(len(tokens))]
    assert all(len(top) == 2 for one in found for top in one.top_logprobs)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": {}}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a"] * 65}, "prompt"),
        ({"prompt": [False, 1]}, "prompt"),
        ({"prompt": ["a"] * 5, "n": 13}, "n"),
        ({"prompt": "a", "best_of": 3}, "best_of"),
        ({"prompt": "a", "echo": True, "logprobs": 1}, "logprobs"),
    ],
)
def test_a_wrong_field_is_named(server, body, param):
    answer = server.http.post("/v1/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize("prompt", ["", [10**9], [-1], [10**30]])
def test_a_prompt_of_no_token_of_the_model(server, prompt):
    assert server.http.post("/v1/completions", json={"prompt": prompt}).status_code == 400
