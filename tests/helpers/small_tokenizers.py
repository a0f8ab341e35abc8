"""Small tokenizers trained on the spot, as GGUF metadata; text that tokenizers find hard."""

import argparse
import inspect
import io
import json
import textwrap
import types
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from hotset.core.config import Activation, ModelConfig, NormKind
from hotset.formats.checkpoint import Checkpoint
from hotset.tokenizer import Tokenizer

LANGUAGES = [
    "Der naïve Ångström-Café-Gänger zahlt 1.234,56 € – „schön“!",
    "Привет, мир! Как дела? Ещё не вечер.",
    "東京で寿司を食べる。今日は2024年です。",
    "안녕하세요 세계",
    "नमस्ते दुनिया, क्या हाल है?",
    "שלום עולם مرحبا بالعالم",
    "😀😃👍🏽 👨‍👩‍👧 e\u0301a\u0308 ①②③ x²",
]
CONTROL = ["<|begin|>", "<|im_start|>", "<|im_end|>"]
USER_DEFINED = ["<tag>", "\n\n", "    "]
HARD = [
    *(" ", "  ", "   ", "\t", "\n", "\r\n", "\n\n\n", " \n", "\u00a0", "\u3000", "\u2028", "\x00", "\x7f"),
    *("'s", "'LL", "'t", "don't", "1", "12", "1234567", "٣", "²", "…", "—", "$", "`", "^", "~", "|", "="),
    *(
        "é",
        "e\u0301",
        "\u0301",
        "ß",
        "Ω",
        "東京",
        "か\u3099",
        "한",
        "😀",
        "👍🏽",
        "🏳️‍🌈",
        "\u200d",
        "\ufeff",
        "\u2581",
    ),
    *("<tag>", "<|im_end|>", "<|im_", "<s>", "</s>", "<0x41>", "<unk>"),
    *("Hello", " world", "self.", "def f(x):", "    return", "HTTPServer", "camelCase", "a/b\\c"),
]
texts = st.lists(st.sampled_from(HARD) | st.sampled_from(LANGUAGES) | st.text(max_size=8), max_size=12).map(
    "".join
)


@cache
def corpus() -> list[str]:
    """Code and prose, a line each."""
    code = [inspect.getsource(module).splitlines() for module in (argparse, textwrap, types)]
    return [line for lines in code for line in lines if line] + LANGUAGES * 20


@cache
def byte_level() -> dict[str, Any]:
    """Metadata of a byte-level BPE whose merges cross words, so that each cut between words shows."""
    from tokenizers import Tokenizer as Trainable
    from tokenizers import decoders, models, pre_tokenizers, trainers

    trained = Trainable(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=CONTROL + USER_DEFINED,
        show_progress=False,
    )
    paragraphs = ["\n".join(corpus()[i : i + 8]) for i in range(0, len(corpus()), 8)]
    trained.train_from_iterator(paragraphs, trainer)
    model = json.loads(trained.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    types = np.ones(len(tokens), np.int32)
    types[: len(CONTROL)] = 3
    types[len(CONTROL) : len(CONTROL + USER_DEFINED)] = 4
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 2,
    }


@cache
def sentencepiece_model(*, add_dummy_prefix: bool) -> bytes:
    """A serialised SentencePiece BPE model with byte fallback."""
    spm = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_writer=model,
        model_type="bpe",
        vocab_size=1200,
        byte_fallback=True,
        character_coverage=0.995,
        normalization_rule_name="identity",
        add_dummy_prefix=add_dummy_prefix,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        user_defined_symbols=[] if add_dummy_prefix else [*USER_DEFINED[:2], "\u2581" * 4],
        control_symbols=CONTROL,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


@cache
def sentencepiece_metadata(*, add_dummy_prefix: bool) -> dict[str, Any]:
    """What llama.cpp's converter writes for `sentencepiece_model`."""
    spm = pytest.importorskip("sentencepiece")
    model = spm.SentencePieceProcessor(model_proto=sentencepiece_model(add_dummy_prefix=add_dummy_prefix))
    ids = range(model.get_piece_size())
    tokens = [model.id_to_piece(id) for id in ids]
    user_defined = [*USER_DEFINED[:2], "\u2581" * 4] if not add_dummy_prefix else []

    def type_of(id: int) -> int:
        known = [(model.is_unknown, 2), (model.is_control, 3), (model.is_byte, 6), (model.is_unused, 5)]
        return next((type for test, type in known if test(id)), 4 if tokens[id] in user_defined else 1)

    types = [type_of(id) for id in ids]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [
            token.replace("\u2581", " ") if type == 4 else token
            for token, type in zip(tokens, types, strict=True)
        ],
        "tokenizer.ggml.scores": np.array([model.get_score(id) for id in ids], np.float32),
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.bos_token_id": model.bos_id(),
        "tokenizer.ggml.eos_token_id": model.eos_id(),
        "tokenizer.ggml.unknown_token_id": model.unk_id(),
        "tokenizer.ggml.add_space_prefix": add_dummy_prefix,
    }


def checkpoint(path: Path, metadata: Mapping[str, Any]) -> Checkpoint:
    """A checkpoint of which only the tokenizer is of interest."""
    config = ModelConfig(
        architecture="llama",
        vocab_size=1,
        context_length=1,
        hidden_size=1,
        ffn_size=1,
        n_heads=1,
        n_kv_heads=1,
        head_dim=1,
        layers=(),
        activation=Activation.SILU,
        gated=True,
        norm=NormKind.RMS,
        norm_eps=1e-5,
    )
    return Checkpoint(path, config, {}, metadata)


def from_metadata(metadata: Mapping[str, Any]) -> Tokenizer:
    return Tokenizer.from_checkpoint(checkpoint(Path("model.gguf"), metadata))


@cache
def small_byte_level() -> Tokenizer:
    return from_metadata(byte_level())


@cache
def small_sentencepiece(*, add_dummy_prefix: bool) -> Tokenizer:
    return from_metadata(sentencepiece_metadata(add_dummy_prefix=add_dummy_prefix))
