"""Embeddings over OpenAI's API and Ollama's: the demo model, said to be one for them."""

import numpy as np
import ollama
import openai
import pytest

from hotset.formats.pooling import Pooling

TEXTS = ["The cat sat on the mat.", "A dog.", "The cat sat on the mats."]


@pytest.fixture(scope="module")
def embedder(run_server):
    return run_server(engine={"pooling": Pooling.MEAN})


@pytest.fixture(scope="module")
def client(embedder):
    return openai.OpenAI(base_url=f"{embedder.url}/v1", api_key="none", max_retries=0)


def test_a_vector_for_each_text(embedder, client):
    answer = client.embeddings.create(model="m", input=TEXTS)  # the SDK asks for base64
    vectors = np.array([one.embedding for one in answer.data])
    assert [one.index for one in answer.data] == [0, 1, 2]
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert vectors[0] @ vectors[2] > vectors[0] @ vectors[1]
    tokens = [embedder.engine.tokenizer.encode(text, add_end=True) for text in TEXTS]
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(map(len, tokens))

    numbers = client.embeddings.create(model="m", input=TEXTS[0], encoding_format="float")
    assert np.array_equal(np.float32(numbers.data[0].embedding), np.float32(vectors[0]))
    by_ids = client.embeddings.create(model="m", input=tokens)
    assert np.array_equal([one.embedding for one in by_ids.data], vectors)
    short = client.embeddings.create(model="m", input=TEXTS[0], dimensions=50).data[0].embedding
    assert np.allclose(short, vectors[0][:50] / np.linalg.norm(vectors[0][:50]), atol=1e-6)


def test_ollamas_forms(embedder, client):
    expected = [one.embedding for one in client.embeddings.create(model="m", input=TEXTS).data]
    theirs = ollama.Client(host=embedder.url)
    assert np.allclose(theirs.embed("m", TEXTS).embeddings, expected)
    assert np.allclose(theirs.embed("m", TEXTS[0]).embeddings, expected[:1])
    assert np.allclose(theirs.embeddings("m", TEXTS[0]).embedding, expected[0])
    assert "embedding" in theirs.show("m").capabilities


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "input is missing"),
        ({"input": ["a", 3]}, "input"),
        ({"input": ["a"] * 2049}, "at most 2048"),
        ({"input": "a", "dimensions": 10_000}, "dimensions"),
        ({"input": "a", "encoding_format": "int8"}, "one of float, base64"),
        ({"input": "many words " * 1000}, "1024"),
        ({"input": ""}, "at least one token"),
        ({"input": [[10**9]]}, "this model has tokens"),
    ],
)
def test_a_wrong_field_is_named(embedder, body, words):
    answer = embedder.http.post("/v1/embeddings", json=body)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


def test_models_that_were_not_made_for_it_say_so(server):
    for path, body in (("/v1/embeddings", {"input": "a"}), ("/api/embed", {"input": "a"})):
        answer = server.http.post(path, json=body)
        assert answer.status_code == 501
        assert "says no pooling" in answer.text
        assert answer.headers["x-should-retry"] == "false"


def test_many_texts_hold_nobody_up_and_stop_when_their_client_leaves(embedder):
    from test_faults import begin

    connection = begin(
        embedder, "/v1/embeddings", {"input": [f"{i} words of text" * 20 for i in range(2000)]}
    )
    embedder.until(lambda: embedder.engine.running)
    answer = embedder.http.post("/v1/completions", json={"prompt": "Once", "max_tokens": 8})
    assert answer.status_code == 200
    assert embedder.engine.running + embedder.engine.waiting <= 4
    connection.close()
    embedder.idle()
