"""What stands between two texts: the demo model, said to have marks for it."""

import json
from dataclasses import replace

import ollama
import openai
import pytest
from helpers.running_server import Running
from scripted import say, scripted_engine

from hotset.server.models import Known
from hotset.tokenizer.fill_in import fill_in

MARKS = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|file_sep|>")
BEFORE, AFTER, MIDDLE = "def twice(x):\n    return ", "\n\nprint(twice(4))\n", "2 * x"


@pytest.fixture(scope="module")
def coder(model):
    """A server whose model takes some of its control tokens for these marks, and says what the tests want."""

    def load(known):
        engine = scripted_engine(model, "smollm2")
        tokenizer = engine.tokenizer
        vocabulary = tokenizer._vocabulary
        spare = sorted(set(vocabulary.control.values()) - set(tokenizer.end_ids))[-4:]
        control = {**vocabulary.control, **dict(zip(MARKS, spare, strict=True))}
        tokenizer._vocabulary = replace(vocabulary, control=control)
        return engine

    running = Running([Known("coder", None)], load)
    yield running
    running.close()


@pytest.fixture
def asked(coder):
    """The token ids of the last prompt."""
    prompts = []

    def note(batch):
        if any(span.lossless for span in batch.spans):
            prompts.append(batch.tokens.tolist())

    coder.transformer.hook = note
    say(coder, MIDDLE)
    yield lambda: [id for prompt in prompts for id in prompt]
    coder.transformer.hook = None


def expected(coder, files=()):
    tokenizer = coder.engine.tokenizer
    marks = [tokenizer._vocabulary.control[mark] for mark in MARKS]

    def ids(text):
        return tokenizer.encode(text, add_special=False, parse_special=False)

    before = [id for name, text in files for id in (marks[3], *ids(f"{name}\n{text}"))]
    before += [marks[3], *ids("file\n")] if files else []
    return [*before, marks[0], *ids(BEFORE), marks[1], *ids(AFTER), marks[2]]


def test_a_suffix_of_completions(coder, asked):
    client = openai.OpenAI(base_url=f"{coder.url}/v1", api_key="none", max_retries=0)
    answer = client.completions.create(model="m", prompt=BEFORE, suffix=AFTER, temperature=0)
    assert answer.choices[0].text == MIDDLE
    assert asked() == expected(coder)
    chunks = client.completions.create(model="m", prompt=BEFORE, suffix=AFTER, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == MIDDLE
    generated = ollama.Client(host=coder.url).generate("m", BEFORE, suffix=AFTER)
    assert generated.response == MIDDLE


def test_infill_of_editors(coder, asked):
    files = [("a.py", "def once(x):\n    return x\n<|fim_middle|>")]  # which stays text
    body = {
        "input_prefix": BEFORE[:-7],
        "prompt": BEFORE[-7:],
        "input_suffix": AFTER,
        "input_extra": [{"filename": name, "text": text} for name, text in files],
        "n_predict": 32,
        "samplers": ["top_k"],
        "t_max_predict_ms": 500,
    }
    answer = coder.http.post("/infill", json=body).json()
    assert (answer["content"], answer["stop_type"]) == (MIDDLE, "eos")
    assert asked() == expected(coder, files)
    assert answer["tokens_evaluated"] == len(asked())
    text = coder.http.post("/infill", json=body | {"stream": True, "stop": ["*"]}).text
    events = [json.loads(part.removeprefix("data: ")) for part in text.strip().split("\n\n")]
    assert "".join(event["content"] for event in events) == "2 "
    assert (events[-1]["stop"], events[-1]["stopping_word"]) == (True, "*")


def test_editors_have_a_prompt_read_before_they_need_its_answer(coder, asked):
    body = {"input_prefix": BEFORE + "# read\n", "input_suffix": AFTER}
    answer = coder.http.post("/infill", json=body | {"n_predict": 0}).json()
    assert (answer["content"], answer["tokens_predicted"]) == ("", 0)
    answer = coder.http.post("/infill", json=body).json()
    assert answer["content"] == MIDDLE
    assert answer["tokens_cached"] == answer["tokens_evaluated"] - 1


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": [1, 2], "suffix": "b"}),
        ("/v1/completions", {"prompt": "a", "suffix": "b", "echo": True}),
        ("/infill", {"input_extra": [{"filename": "a"}]}),
        ("/infill", {"input_prefix": 3}),
        ("/infill", {"input_extra": [{"text": "a"}] * 65}),
    ],
)
def test_a_wrong_field_is_a_400(coder, path, body):
    assert coder.http.post(path, json=body).status_code == 400


def test_models_without_marks_say_so(server):
    for path, body in (
        ("/v1/completions", {"prompt": "a", "suffix": "b"}),
        ("/infill", {"input_prefix": "a"}),
        ("/api/generate", {"prompt": "a", "suffix": "b"}),
    ):
        answer = server.http.post(path, json=body)
        assert answer.status_code == 501
        assert "no marks for it" in answer.text


@pytest.mark.parametrize("style", ["<fim_{}>", "<fim-{}>", "<|fim_{}|>"])
def test_marks_of_other_families(style):
    control = {style.format(name): i for i, name in enumerate(("prefix", "suffix", "middle"))}
    assert fill_in(control, lambda text: [len(text) + 10], "ab", "c", [("f", "t")]) == [0, 12, 1, 11, 2]
