"""Whatever GGUF's key-values hold, the answer is a working tokenizer or one line that names the file."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helpers.small_tokenizers import byte_level, from_metadata, sentencepiece_metadata
from hypothesis import given, settings
from hypothesis import strategies as st

from hotset.core.errors import CheckpointError, HotsetError

SOURCES: dict[str, Callable[[], dict[str, Any]]] = {
    "gpt2": byte_level,
    "llama": lambda: sentencepiece_metadata(add_dummy_prefix=True),
}
KEYS = [
    *("model", "pre", "tokens", "merges", "scores", "token_type", "add_bos_token", "add_eos_token"),
    *("bos_token_id", "eos_token_id", "eot_token_id", "add_space_prefix", "remove_extra_whitespaces"),
]
scalars = (
    st.none()
    | st.booleans()
    | st.sampled_from([-1, 0, 3, 1199, 1500, 2**31, 2**63])
    | st.floats()
    | st.sampled_from(["", "gpt2", "llama", "qwen2", "default", "<|im_end|>"])
)
arrays = st.lists(st.integers(-5, 9), max_size=4).map(np.array) | st.lists(st.floats(), max_size=4).map(
    np.array
)
values = scalars | arrays | st.lists(st.text(max_size=3) | st.integers(), max_size=4)


@st.composite
def damaged(draw: st.DrawFn, source: dict[str, Any]) -> dict[str, Any]:
    """The metadata with some keys replaced, shortened or with an entry overwritten."""
    metadata = dict(source)
    for name in draw(st.lists(st.sampled_from(KEYS), min_size=1, max_size=2, unique=True)):
        key = f"tokenizer.ggml.{name}"
        value = metadata.get(key)
        if isinstance(value, list | np.ndarray) and len(value) and draw(st.booleans()):
            changed = value.copy()
            at = draw(st.integers(0, len(value) - 1))
            if draw(st.booleans()):
                metadata[key] = changed[:at]
            elif isinstance(changed, list):
                changed[at] = draw(st.sampled_from(["", "a", "a b", "a  b", " ", "Ġ Ġ", "\u2581", value[-1]]))
                metadata[key] = changed
            else:
                changed[at] = draw(st.sampled_from([-7, 0, 1, 2, 3, 4, 5, 6, 99]))
                metadata[key] = changed
        else:
            metadata[key] = draw(values)
    return metadata


@pytest.mark.parametrize("kind", SOURCES)
def test_damaged_metadata_never_crash(kind: str) -> None:
    @settings(max_examples=150, deadline=None)
    @given(damaged(SOURCES[kind]()))
    def check(metadata: dict[str, Any]) -> None:
        try:
            tokenizer = from_metadata(metadata)
            ids = tokenizer.encode("The end. <|im_end|> 東京\n\n 12")
            tokenizer.decode(ids, skip_special=False)
        except HotsetError as error:
            assert "\n" not in str(error)
            assert str(error).startswith("model.gguf: ")

    check()


@pytest.mark.parametrize(
    ("kind", "key", "value", "message"),
    [
        ("gpt2", "model", None, "missing key tokenizer.ggml.model: the file has no tokenizer"),
        ("gpt2", "model", "bert", "tokenizer.ggml.model: expected one of gpt2, llama, gemma4, found 'bert'"),
        ("gpt2", "model", "t5", "found 't5'"),
        ("gpt2", "pre", None, "missing key tokenizer.ggml.pre"),
        ("gpt2", "tokens", None, "tokenizer.ggml.tokens: expected a list of strings"),
        ("gpt2", "tokens", ["a", 1], "tokenizer.ggml.tokens: expected a list of strings"),
        ("gpt2", "merges", None, "tokenizer.ggml.merges: expected a list of strings"),
        ("gpt2", "merges", ["Ġt h"] * 2 + ["nothere x"], "merges do not fit its tokens"),
        ("gpt2", "merges", ["abc"], "merges do not fit its tokens"),
        ("gpt2", "token_type", np.ones(3, np.int32), "expected a number a token (1500), found 3"),
        ("gpt2", "eos_token_id", "2", "tokenizer.ggml.eos_token_id: expected int, found str"),
        ("gpt2", "add_bos_token", 1, "tokenizer.ggml.add_bos_token: expected bool, found int"),
        ("llama", "scores", None, "missing key tokenizer.ggml.scores"),
        ("llama", "scores", np.full(1200, np.nan), "tokenizer.ggml.scores: expected finite numbers"),
    ],
)
def test_each_fault_is_named(kind: str, key: str, value: Any, message: str) -> None:
    with pytest.raises(CheckpointError) as error:
        from_metadata({**SOURCES[kind](), f"tokenizer.ggml.{key}": value})
    assert str(error.value).startswith("model.gguf: ")
    assert message in str(error.value)


@pytest.mark.parametrize("kind", SOURCES)
def test_several_empty_or_doubled_tokens_are_no_fault(kind: str) -> None:
    """Converters leave such holes in a vocabulary; text is encoded and decoded as before."""
    whole = SOURCES[kind]()
    tokens = list(whole["tokenizer.ggml.tokens"])
    types = np.array(whole["tokenizer.ggml.token_type"])
    spare = [id for id, token in enumerate(tokens) if len(token) > 6 and types[id] == 1][-4:]
    tokens[spare[0]] = tokens[spare[1]] = ""
    tokens[spare[2]] = tokens[spare[3]] = "<|im_end|>"
    types[spare[0]] = 3
    metadata = {**whole, "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    if kind == "gpt2":
        metadata["tokenizer.ggml.merges"] = [
            merge
            for merge in whole["tokenizer.ggml.merges"]
            if {*merge.split(" "), merge.replace(" ", "")} <= set(tokens)
        ]
    ours = from_metadata(metadata)
    text = "The end <b"
    assert ours.decode(ours.encode(text, add_special=False)) == text
    end = tokens.index("<|im_end|>")
    assert ours.encode("<|im_end|>", add_special=False)[-1:] == [end]
    assert {end, *spare[2:]} <= ours.end_ids
    assert ours.token_bytes(spare[0]) == b""


@pytest.mark.parametrize("id", [1500, -7, 2**31])
@pytest.mark.parametrize("key", ["bos_token_id", "eos_token_id", "eot_token_id", "unknown_token_id"])
def test_a_special_id_that_is_no_token_is_ignored_with_a_warning(
    key: str, id: int, caplog: pytest.LogCaptureFixture
) -> None:
    metadata = {**byte_level(), f"tokenizer.ggml.{key}": id, "tokenizer.chat_template": "x"}
    ours = from_metadata({**metadata, "tokenizer.ggml.add_bos_token": True})
    assert ours.decode(ours.encode("hello")) == "hello"
    assert [record.getMessage() for record in caplog.records] == [
        f"model.gguf: tokenizer.ggml.{key}: expected an id below 1500, found {id}; the key is ignored"
    ]


def test_a_begin_token_that_is_asked_for_must_be_named() -> None:
    metadata = {**byte_level(), "tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": None}
    with pytest.raises(CheckpointError, match=r"missing key tokenizer\.ggml\.bos_token_id"):
        from_metadata(metadata)


def test_an_end_token_is_added_where_it_is_asked_for_and_the_text_is_over() -> None:
    plain, ended = (
        from_metadata(byte_level()),
        from_metadata({**byte_level(), "tokenizer.ggml.add_eos_token": True}),
    )
    assert ended.encode("hello") == plain.encode("hello") == plain.encode("hello", add_end=True)
    assert ended.encode("hello", add_end=True) == [*plain.encode("hello"), 2]
