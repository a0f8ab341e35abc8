"""The peer of every tokenizer test."""

from collections.abc import Callable, Mapping
from typing import Any

import gguf
import numpy as np
import pytest


@pytest.fixture(scope="session")
def llama_cpp(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Mapping[str, Any]], Any]:
    """llama.cpp's tokenizer of some metadata, as ``encode(text, parse_special)`` without a begin token."""
    peer = pytest.importorskip("llama_cpp")
    writers = {
        str: gguf.GGUFWriter.add_string,
        bool: gguf.GGUFWriter.add_bool,
        int: gguf.GGUFWriter.add_uint32,
        list: gguf.GGUFWriter.add_array,
    }

    def make(metadata: Mapping[str, Any]) -> Callable[[str, bool], list[int]]:
        path = tmp_path_factory.mktemp("vocabulary") / "model.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        for key, value in metadata.items():
            plain = value.tolist() if isinstance(value, np.ndarray) else value
            writers[type(plain)](writer, key, plain)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        model = peer.Llama(str(path), vocab_only=True, verbose=False)
        return lambda text, parse_special: model.tokenize(text.encode(), add_bos=False, special=parse_special)

    return make
