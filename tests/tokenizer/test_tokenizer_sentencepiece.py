"""SentencePiece's BPE from GGUF metadata, against sentencepiece itself and llama.cpp."""

import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helpers.small_tokenizers import (
    CONTROL,
    corpus,
    from_metadata,
    sentencepiece_metadata,
    sentencepiece_model,
    texts,
)
from helpers.small_tokenizers import small_sentencepiece as ours
from hypothesis import given, settings

from hotset.core.errors import CheckpointError


@pytest.mark.parametrize("add_dummy_prefix", [False, True])
def test_ids_equal_sentencepiece(add_dummy_prefix: bool) -> None:
    spm = pytest.importorskip("sentencepiece")
    model = sentencepiece_model(add_dummy_prefix=add_dummy_prefix)
    peer = spm.SentencePieceProcessor(model_proto=model)
    tokenizer = ours(add_dummy_prefix=add_dummy_prefix)

    def equal(text: str) -> None:
        text = text.replace("\u2581", "")  # sentencepiece takes it for a space before it looks for "    "
        ids = tokenizer.encode(text, add_special=False, parse_special=False)
        assert ids == peer.encode(text)
        assert tokenizer.decode(ids) == peer.decode(ids)

    settings(max_examples=150, deadline=None)(given(texts)(equal))()
    equal("\n".join(corpus()))  # thousands of words, and words remembered
    equal("".join(random.Random(0).choices("ab, \n", k=5000)))
    equal("x" * 3000)  # one word far longer than any piece


@pytest.mark.parametrize("add_dummy_prefix", [False, True])
def test_ids_equal_llama_cpp(add_dummy_prefix: bool, llama_cpp: Callable[[Any], Any]) -> None:
    metadata = sentencepiece_metadata(add_dummy_prefix=add_dummy_prefix)
    peer = llama_cpp(metadata)
    tokenizer = ours(add_dummy_prefix=add_dummy_prefix)

    @settings(max_examples=100, deadline=None)
    @given(texts)
    def check(text: str) -> None:
        for parse_special in (False, True):
            ids = tokenizer.encode(text, add_special=False, parse_special=parse_special)
            assert ids == peer(text, parse_special)

    check()


@settings(max_examples=150, deadline=None)
@given(texts)
def test_text_survives(text: str) -> None:
    text = text.replace("\u2581", "")  # stands for a space
    for add_dummy_prefix in (False, True):
        tokenizer = ours(add_dummy_prefix=add_dummy_prefix)
        assert tokenizer.decode(tokenizer.encode(text, parse_special=False)) == text


@settings(max_examples=150, deadline=None)
@given(texts)
def test_no_text_gives_a_control_or_byte_token_of_its_name(text: str) -> None:
    metadata = sentencepiece_metadata(add_dummy_prefix=False)
    names = [*CONTROL, "<s>", "</s>", "<unk>"]
    control = {metadata["tokenizer.ggml.tokens"].index(token) for token in names}
    ids = ours(add_dummy_prefix=False).encode(text, add_special=False, parse_special=False)
    assert control.isdisjoint(ids)
    assert "<0x41>" not in text or len(ids) > 1


def test_extra_spaces_are_removed_where_the_file_says_so() -> None:
    metadata = sentencepiece_metadata(add_dummy_prefix=True)
    tokenizer = from_metadata({**metadata, "tokenizer.ggml.remove_extra_whitespaces": True})
    plain = ours(add_dummy_prefix=True)
    assert tokenizer.encode("  the   end ") == plain.encode("the end")


def test_a_space_that_a_piece_joins_to_what_precedes_it_is_not_cut_off() -> None:
    metadata = sentencepiece_metadata(add_dummy_prefix=False)
    tokens = metadata["tokenizer.ggml.tokens"]
    joined = tokens.index("\u2581the")
    metadata = {
        **metadata,
        "tokenizer.ggml.tokens": [*tokens[:joined], ")\u2581", *tokens[joined + 1 :]],
    }
    tokenizer = from_metadata(metadata)
    assert joined in tokenizer.encode("f(x) y")


def test_a_vocabulary_without_byte_tokens_is_refused() -> None:
    metadata = sentencepiece_metadata(add_dummy_prefix=False)
    tokens = [token.replace("<0x7F>", "<no byte>") for token in metadata["tokenizer.ggml.tokens"]]
    with pytest.raises(CheckpointError, match="expected 256 byte tokens <0x00> to <0xFF>, found 255"):
        from_metadata({**metadata, "tokenizer.ggml.tokens": tokens})


@pytest.mark.parametrize(
    ("name", "swallows"), [("Phi-3 mini 4k", True), ("phi3.5", True), ("Llama 2", False)]
)
def test_control_tokens_of_phi_3_swallow_what_spaces_follow(name: str, swallows: bool) -> None:
    """Its tokens have `rstrip`, which GGUF cannot say."""
    tokenizer = from_metadata({**sentencepiece_metadata(add_dummy_prefix=True), "general.name": name})
    turn, begin = (tokenizer.encode(text, add_special=False)[0] for text in ("<|im_start|>", "<s>"))
    hi, spaced = (tokenizer.encode(text, add_special=False) for text in ("hi \n", "\n hi \n"))
    assert tokenizer.encode("<|im_start|>\n hi \n", add_special=False) == [
        turn,
        *(hi if swallows else spaced),
    ]
    assert tokenizer.encode("<s>\n hi \n", add_special=False) == [begin, *spaced]


def test_gemma_4_equals_transformers() -> None:
    """BPE over characters with merges, spaces as U+2581, bytes for what is no token."""
    tokenizers = pytest.importorskip("tokenizers")
    trained = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=True))
    trained.normalizer = tokenizers.normalizers.Replace(" ", "\u2581")
    trained.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("\n+"), "isolated")
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<|turn>", "<turn|>", "<|tool_response>"]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=1200, special_tokens=[*special, *bytes_], limit_alphabet=90, show_progress=False
    )
    trained.train_from_iterator(["\n".join(corpus()[i : i + 4]) for i in range(0, 2000, 4)], trainer)
    model = json.loads(trained.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    merges = [tuple(merge) for merge in model["merges"]]
    theirs = pytest.importorskip("transformers").GemmaTokenizer(
        vocab=model["vocab"], merges=merges, extra_special_tokens=special[5:]
    )
    ours = from_metadata(
        {
            "tokenizer.ggml.model": "gemma4",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
            "tokenizer.ggml.token_type": np.array([3] * len(special) + [6] * 256 + [1] * (len(tokens) - 264)),
            "tokenizer.ggml.bos_token_id": 2,
            "tokenizer.ggml.eos_token_id": 1,
            "tokenizer.ggml.unknown_token_id": 3,
        }
    )

    @settings(max_examples=100, deadline=None)
    @given(texts)
    def check(text: str) -> None:
        ids = ours.encode(text)
        assert ids == [2, *theirs.encode(text, add_special_tokens=False)]
        assert ours.decode(ids[1:], skip_special=False) == text.replace("\u2581", " ")

    check()
    assert ours.encode("\n<|turn>model\n", add_special=False)[1] == 5
    assert ours.end_ids == {1, 6, 7}
