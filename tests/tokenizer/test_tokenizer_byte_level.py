"""Byte-level BPE from GGUF metadata, against transformers and llama.cpp."""

import re
import unicodedata
from collections.abc import Callable
from typing import Any

import pytest
from helpers.small_tokenizers import (
    CONTROL,
    LANGUAGES,
    byte_level,
    corpus,
    from_metadata,
    small_byte_level,
    texts,
)
from hypothesis import given, settings

from hotset.core.errors import CheckpointError
from hotset.tokenizer.pretokenizers import PRE_TOKENIZERS

# llama.cpp writes these with ASCII case and without combining marks.
ASCII_CASE = {"tekken", "gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2", "tiny_aya", "cohere2moe"}


def comparable(text: str, pre: str) -> str:
    """The text less what llama.cpp is known to treat otherwise than the models' own tokenizers."""
    text = text.replace("ſ", "s")  # (?i:'s) matches the long s, llama.cpp's 'sS' does not
    if pre.startswith("deepseek"):  # llama.cpp takes other spaces for vertical tabs
        text = "".join(c for c in text if c.isascii() or not c.isspace())
    if pre in ASCII_CASE:
        text = "".join(c for c in text if c.isascii() or unicodedata.category(c) in ("Lo", "Po", "So", "Zs"))
    return unicodedata.normalize("NFC", text) if PRE_TOKENIZERS[pre].nfc else text


@pytest.mark.parametrize("pre", {value: name for name, value in PRE_TOKENIZERS.items()}.values())
def test_pre_tokenizers_equal_llama_cpp(pre: str, llama_cpp: Callable[[Any], Any]) -> None:
    if pre in ("tiny_aya", "cohere2moe"):
        pytest.skip(
            "llama.cpp ends words otherwise than the model's own expression; no family that runs has it"
        )
    metadata = {**byte_level(), "tokenizer.ggml.pre": pre}
    peer = llama_cpp(metadata)
    ours = from_metadata(metadata)

    @settings(max_examples=40, deadline=None)
    @given(texts)
    def check(text: str) -> None:
        text = comparable(text, pre)
        for parse_special in (False, True):
            assert ours.encode(text, add_special=False, parse_special=parse_special) == peer(
                text, parse_special
            )

    check()
    whole = comparable("\n".join(corpus()[::20]), pre)
    assert ours.encode(whole, add_special=False) == peer(whole, True)


@pytest.mark.parametrize(
    ("pre", "peer"),
    [
        ("gpt-2", "GPT2Tokenizer"),
        ("qwen2", "Qwen2Tokenizer"),
        ("mpt", "GPTNeoXTokenizer"),
        ("command-r", "CohereTokenizer"),
    ],
)
def test_pre_tokenizers_equal_transformers(pre: str, peer: str) -> None:
    transformers = pytest.importorskip("transformers")
    metadata = {**byte_level(), "tokenizer.ggml.pre": pre}
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    vocabulary = {token: id for id, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    theirs = getattr(transformers, peer)(
        vocab=vocabulary, merges=merges, unk_token=None, bos_token=None, eos_token=None, pad_token=None
    )
    # Without special tokens on either side: transformers adds its own.
    metadata["tokenizer.ggml.token_type"] = metadata["tokenizer.ggml.token_type"] * 0 + 1
    ours = from_metadata(metadata)

    @settings(max_examples=100, deadline=None)
    @given(texts)
    def check(text: str) -> None:
        ids = ours.encode(text, add_special=False, parse_special=False)
        assert ids == theirs.encode(text, add_special_tokens=False)

    check()


@settings(max_examples=150, deadline=None)
@given(texts)
def test_text_survives(text: str) -> None:
    ours = small_byte_level()
    for parse_special in (False, True):
        ids = ours.encode(text, add_special=False, parse_special=parse_special)
        assert ours.decode(ids, skip_special=False) == text
        assert b"".join(map(ours.token_bytes, ids)) == text.encode()


@settings(max_examples=150, deadline=None)
@given(texts)
def test_no_text_gives_a_control_token_unless_asked(text: str) -> None:
    ours = small_byte_level()
    control = {byte_level()["tokenizer.ggml.tokens"].index(token) for token in CONTROL}
    assert control.isdisjoint(ours.encode(text, add_special=False, parse_special=False))
    written = len(re.findall("|".join(map(re.escape, CONTROL)), text))
    assert sum(id in control for id in ours.encode(text, add_special=False)) == written


def test_begin_and_end_tokens_are_added_as_the_file_says() -> None:
    text = LANGUAGES[0]
    plain = from_metadata(byte_level()).encode(text, add_special=False)
    for pre, keys, expected in [
        ("gpt-2", {}, plain),
        ("gpt-2", {"tokenizer.ggml.add_bos_token": True}, [0, *plain]),
        ("gpt-2", {"tokenizer.ggml.add_eos_token": True}, plain),
        ("llama-bpe", {"tokenizer.ggml.add_bos_token": False}, None),
        ("llama-bpe", {}, None),
    ]:
        tokenizer = from_metadata({**byte_level(), "tokenizer.ggml.pre": pre, **keys})
        ids = tokenizer.encode(text)
        if expected is None:
            assert (ids[0] == 0) == (not keys)
        else:
            assert ids == expected
    assert tokenizer.bos_id == 0
    assert tokenizer.end_ids == {2}


def test_an_unknown_pre_tokenizer_is_refused_by_name() -> None:
    with pytest.raises(CheckpointError, match=r"^model.gguf: tokenizer.ggml.pre: .*found 'kimi-k2'$"):
        from_metadata({**byte_level(), "tokenizer.ggml.pre": "kimi-k2"})
