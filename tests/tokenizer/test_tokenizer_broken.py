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
        ("gpt2", "model", "bert", "tokenizer.ggml.model: expected gpt2 or llama, found 'bert'"),
        ("gpt2", "model", "t5", "found 't5'"),
        ("gpt2", "pre", None, "missing key tokenizer.ggml.pre"),
        ("gpt2", "tokens", None, "tokenizer.ggml.tokens: expected a list of strings"),
        ("gpt2", "tokens", ["a", "b", "a"], "tokenizer.ggml.tokens: 0 and 2 are both 'a'"),
        ("gpt2", "tokens", ["a", 1], "tokenizer.ggml.tokens: expected a list of strings"),
        ("gpt2", "merges", None, "tokenizer.ggml.merges: expected a list of strings"),
        ("gpt2", "merges", ["Ġt h"] * 2 + ["nothere x"], "merges do not fit its tokens"),
        ("gpt2", "merges", ["abc"], "merges do not fit its tokens"),
        ("gpt2", "token_type", np.ones(3, np.int32), "expected a number a token (1500), found 3"),
        ("gpt2", "bos_token_id", 1500, "tokenizer.ggml.bos_token_id: expected an id below 1500, found 1500"),
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


def test_a_begin_token_that_is_asked_for_must_be_named() -> None:
    metadata = {**byte_level(), "tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": None}
    with pytest.raises(CheckpointError, match=r"missing key tokenizer\.ggml\.bos_token_id"):
        from_metadata(metadata)
