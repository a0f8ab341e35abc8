"""Streaming gives out whole characters only, and in sum what decoding at once gives."""

import pytest
from helpers.small_tokenizers import (
    byte_level,
    sentencepiece_metadata,
    small_byte_level,
    small_sentencepiece,
    texts,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from hotset.core.errors import RequestError
from hotset.tokenizer import Tokenizer

TOKENIZERS = {
    "byte-level": small_byte_level,
    "sentencepiece": lambda: small_sentencepiece(add_dummy_prefix=True),
}
ids = st.lists(st.integers(0, 1199), max_size=40)  # mostly no UTF-8: half of the common ids are single bytes


def streamed(tokenizer: Tokenizer, ids: list[int]) -> str:
    stream = tokenizer.stream()
    return "".join(map(stream.push, ids)) + stream.flush()


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_stream_continues_any_prompt(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()

    @settings(max_examples=100, deadline=None)
    @given(texts)
    def check(text: str) -> None:
        ids = tokenizer.encode(text, parse_special=False)
        whole = tokenizer.decode(ids)
        for cut in range(2, len(ids), 3):
            prompt = tokenizer.decode(ids[:cut])
            if whole.startswith(prompt):  # else the cut is within a character
                assert prompt + streamed(tokenizer, ids[cut:]) == whole

    check()


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_stream_of_any_ids_is_their_bytes_decoded(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()

    @settings(max_examples=100, deadline=None)
    @given(ids)
    def check(ids: list[int]) -> None:
        visible = b"".join(tokenizer.token_bytes(id) for id in ids if id not in hidden)
        assert streamed(tokenizer, ids) == visible.decode(errors="replace")

    types = (byte_level() if kind == "byte-level" else sentencepiece_metadata(add_dummy_prefix=True))[
        "tokenizer.ggml.token_type"
    ]
    hidden = {id for id, type in enumerate(types) if type in (2, 3)}
    check()


def test_an_incomplete_character_waits_and_is_replaced_at_the_end() -> None:
    tokenizer = small_sentencepiece(add_dummy_prefix=True)
    tokens = sentencepiece_metadata(add_dummy_prefix=True)["tokenizer.ggml.tokens"]
    first, *rest = (tokens.index(f"<0x{byte:02X}>") for byte in "🦀".encode())
    stream = tokenizer.stream()
    assert [stream.push(first), *map(stream.push, rest), stream.push(first), stream.flush()] == [
        *("", "", "", "🦀", ""),
        "\ufffd",
    ]


def test_control_tokens_are_shown_only_when_asked() -> None:
    tokenizer = small_byte_level()
    ids = tokenizer.encode("<|im_start|>hi<tag><|im_end|>")
    assert tokenizer.decode(ids) == "hi<tag>"
    assert tokenizer.decode(ids, skip_special=False) == "<|im_start|>hi<tag><|im_end|>"
    assert streamed(tokenizer, ids) == "hi<tag>"


@pytest.mark.parametrize("id", [-1, 1500, 1 << 40])
def test_an_id_outside_the_vocabulary_is_refused(id: int) -> None:
    tokenizer = small_byte_level()
    for use in (
        tokenizer.token_bytes,
        lambda id: tokenizer.decode([id]),
        tokenizer.stream().push,
    ):
        with pytest.raises(RequestError, match=f"^token id {id} is not in the vocabulary of 1500 tokens$"):
            use(id)


def test_text_that_is_no_unicode_is_refused() -> None:
    with pytest.raises(RequestError, match="lone surrogate at character 2"):
        small_byte_level().encode("ab\udc80")
