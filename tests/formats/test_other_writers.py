"""GGUF files of other writers and of earlier years, and metadata that the user overrides."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.gguf_bytes import GGUFBytes, TensorLine, pack_string, tiny_llama, tiny_model
from helpers.profiles import random_profile

from hotset.architectures.table import ARCHITECTURES
from hotset.convert.by_neuron import convert
from hotset.core.errors import CheckpointError, RequestError
from hotset.formats import Checkpoint, Overrides, open_checkpoint
from hotset.formats.gguf_file import read_gguf

BY_NAME = {architecture.name: architecture for architecture in reversed(ARCHITECTURES)}
GEMMA = BY_NAME["gemma3"]


@pytest.fixture
def opened(tmp_path: Path) -> Any:
    def open_bytes(file: GGUFBytes, overrides: Overrides | None = None) -> Checkpoint:
        path = tmp_path / "m.gguf"
        path.write_bytes(file.to_bytes())
        return open_checkpoint(path, overrides)

    return open_bytes


def deeper(file: GGUFBytes, layers: int) -> GGUFBytes:
    """The file with copies of its only layer."""
    name = dict(file.keys)["general.architecture"]
    own = [tensor for tensor in file.tensors if tensor.name.startswith("blk.0.")]
    more = [
        TensorLine(tensor.name.replace("blk.0.", f"blk.{i}."), tensor.shape, tensor.data)
        for i in range(1, layers)
        for tensor in own
    ]
    return GGUFBytes(dict(file.keys) | {f"{name}.block_count": layers}, [*file.tensors, *more])


def windows(checkpoint: Checkpoint) -> list[int | None]:
    return [layer.window for layer in checkpoint.config.layers]


PATTERNS: list[tuple[Any, list[bool]]] = [
    (None, [True] * 5 + [False, True]),
    (3, [True, True, False, True, True, False, True]),
    (1, [False] * 7),
    (0, [True] * 7),
    ([True, False, False, True, True, True, False], [True, False, False, True, True, True, False]),
    ([1, 0, 0, 1, 1, 1, 0], [True, False, False, True, True, True, False]),
    ([False] * 7, [False] * 7),
]


@pytest.mark.parametrize(("pattern", "windowed"), PATTERNS, ids=lambda value: str(value)[:12])
def test_window_patterns(opened: Any, pattern: Any, windowed: list[bool]) -> None:
    changes = {} if pattern is None else {"gemma3__attention__sliding_window_pattern": pattern}
    checkpoint = opened(deeper(tiny_model(GEMMA, gemma3__attention__sliding_window=5, **changes), 7))
    assert windows(checkpoint) == [5 if window else None for window in windowed]
    local, full = checkpoint.config.layers[0].rope, checkpoint.config.layers[5].rope
    assert (local == full) == (windowed[0] == windowed[5])


@pytest.mark.parametrize("pattern", [[True] * 6, [2] * 7, [0.5] * 7, ["a"] * 7, -1, "x"], ids=str)
def test_window_patterns_that_mean_nothing(opened: Any, pattern: Any) -> None:
    packed = struct.pack("<Ii", 5, pattern) if pattern == -1 else pattern
    file = tiny_model(GEMMA, gemma3__attention__sliding_window_pattern=packed)
    with pytest.raises(CheckpointError, match=r"gemma3.attention.sliding_window_pattern: expected"):
        opened(deeper(file, 7))


def test_a_pattern_of_other_families_counts_too(opened: Any) -> None:
    changes = {
        "llama__attention__sliding_window": 5,
        "llama__attention__sliding_window_pattern": [False, True],
    }
    assert windows(opened(deeper(tiny_llama(**changes), 2))) == [None, 5]


def test_an_own_pattern_is_kept_by_convert(opened: Any, tmp_path: Path) -> None:
    pattern = [True, False, False, True, True, True, False]
    changes = {"sliding_window": 5, "sliding_window_pattern": pattern}
    source = opened(
        deeper(tiny_model(GEMMA, **{f"gemma3__attention__{key}": value for key, value in changes.items()}), 7)
    )
    convert(source, tmp_path / "o.gguf", random_profile(source))
    assert windows(open_checkpoint(tmp_path / "o.gguf")) == windows(source)


def ollama(layers: int, **changes: Any) -> GGUFBytes:
    """Gemma 3 with images as Ollama's converter writes it: few keys, own names, vision tensors."""
    absent = {"attention__layer_norm_rms_epsilon": None, "attention__layer_norm_epsilon": None}
    file = deeper(tiny_model(GEMMA, **{f"gemma3__{key}": v for key, v in (absent | changes).items()}), layers)
    for name in ("v.blk.0.attn_q.weight", "v.patch_embedding.weight", "mm.input_projection.weight", "a.x"):
        file.tensors.append(TensorLine(name, (2, 2, 4), bytes(64)))
    return file


def test_ollamas_file_with_images(opened: Any, tmp_path: Path) -> None:
    bases = {"rope__global__freq_base": 5e5, "rope__local__freq_base": 500.0}
    checkpoint = opened(ollama(6, attention__sliding_window=5, **bases))
    assert checkpoint.notes == (
        "4 tensors for images and sound are left out: only the text part of the model is run",
    )
    assert not any(name.startswith(("v.", "mm.", "a.")) for name in checkpoint.tensors)
    config = checkpoint.config
    assert config.norm_eps == 1e-6
    assert config.head_dim == 4  # told by the norms of queries and keys: no key does
    assert [layer.rope.inverse_frequencies[1] for layer in config.layers] == pytest.approx(
        [500**-0.5] * 5 + [5e5**-0.5]
    )
    convert(checkpoint, tmp_path / "o.gguf", random_profile(checkpoint))
    again = open_checkpoint(tmp_path / "o.gguf")
    assert again.config.layers[5].rope == config.layers[5].rope
    assert again.notes == checkpoint.notes
    defaults = opened(ollama(6, attention__sliding_window=5)).config
    assert [layer.rope.inverse_frequencies[1] for layer in defaults.layers] == pytest.approx(
        [1e4**-0.5] * 5 + [1e6**-0.5]
    )


@pytest.mark.parametrize(("layers", "factor"), [(34, 8.0), (26, 1.0)])
def test_gemmas_rope_is_scaled_as_published_where_the_file_does_not_say(
    opened: Any, layers: int, factor: float
) -> None:
    config = opened(ollama(layers, attention__sliding_window=5)).config
    assert config.layers[0].rope.inverse_frequencies[0] == 1
    assert config.layers[5].rope.inverse_frequencies[0] == pytest.approx(1 / factor)
    stated = opened(ollama(layers, attention__sliding_window=5, rope__scaling__factor=2.0)).config
    assert stated.layers[5].rope.inverse_frequencies[0] == pytest.approx(0.5)


# Files from before spring 2024 do not name their pre-tokenizer.


def byte_level(name: str, tokens: list[str] | None = None, **changes: Any) -> GGUFBytes:
    own = {"tokenizer__ggml__model": "gpt2", "tokenizer__ggml__tokens": tokens or ["a", "b"]}
    return tiny_model(BY_NAME[name], **(own | {"tokenizer__ggml__token_type": None} | changes))


@pytest.mark.parametrize(
    ("name", "tokens", "pre"),
    [
        ("falcon", None, "falcon"),
        ("opt", None, "gpt-2"),
        ("qwen2", None, "qwen2"),
        ("qwen3", None, "qwen2"),
        ("llama", ["a", "<|begin_of_text|>"], "llama-bpe"),
    ],
)
def test_the_familys_pre_tokenizer(opened: Any, name: str, tokens: list[str] | None, pre: str) -> None:
    checkpoint = opened(byte_level(name, tokens))
    assert (checkpoint.metadata["tokenizer.ggml.pre"], checkpoint.notes) == (pre, ())


@pytest.mark.parametrize("name", ["llama", "nemotron"])
def test_without_a_familys_the_old_default_and_a_note(opened: Any, name: str) -> None:
    checkpoint = opened(byte_level(name))
    assert checkpoint.metadata["tokenizer.ggml.pre"] == "default"
    (note,) = checkpoint.notes
    assert "default is taken" in note
    assert "--override tokenizer.ggml.pre=NAME" in note
    named = opened(byte_level(name), {"tokenizer.ggml.pre": "tekken"})
    assert (named.metadata["tokenizer.ggml.pre"], named.notes) == ("tekken", ())


def test_other_tokenizers_need_none(opened: Any) -> None:
    for model in (None, "llama", [], [1]):
        file = byte_level("llama", tokenizer__ggml__model=model)
        checkpoint = opened(file)
        assert "tokenizer.ggml.pre" not in checkpoint.metadata
        assert checkpoint.notes == ()
    stated = opened(byte_level("falcon", tokenizer__ggml__pre="default"))
    assert stated.metadata["tokenizer.ggml.pre"] == "default"


# What nobody needs may be unreadable.

NESTED = struct.pack("<IIQ", 9, 9, 2) + (struct.pack("<IQ", 4, 2) + struct.pack("<II", 7, 8)) * 2
WORDS = struct.pack("<IIQ", 9, 9, 1) + struct.pack("<IQ", 8, 2) + pack_string("a") + pack_string("b")
BAD = struct.pack("<I", 8) + pack_string(b"caf\xe9")


@pytest.mark.parametrize("value", [NESTED, WORDS, BAD], ids=["numbers", "words", "bad byte"])
def test_unreadable_values_that_nobody_needs(opened: Any, tmp_path: Path, value: bytes) -> None:
    source = opened(tiny_llama(general__description=value, general__after=7))
    assert source.metadata["general.after"] == 7
    assert source.notes == ()
    with pytest.raises(CheckpointError, match=r"key 'general.description' has (arrays of|text that is not)"):
        source.metadata["general.description"]
    convert(source, tmp_path / "o.gguf", random_profile(source))
    raw = read_gguf(tmp_path / "o.gguf").metadata
    assert (raw.raw("general.description"), raw["general.after"]) == (value, 7)


@pytest.mark.parametrize("value", [NESTED, BAD], ids=["nested", "bad byte"])
def test_unreadable_values_that_are_needed(opened: Any, value: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"m.gguf: key 'llama.rope.scaling.type' has"):
        opened(tiny_llama(llama__rope__scaling__type=value))
    assert opened(tiny_llama(llama__rope__scaling__type=value), {"llama.rope.scaling.type": "none"})


# Overrides.


def test_overrides_take_the_files_place(opened: Any, tmp_path: Path) -> None:
    plain = opened(tiny_llama())
    changed = opened(
        tiny_llama(llama__rope__freq_base=1e4),
        {"llama.rope.freq_base": 100, "llama.rope.scaling.factor": 2.0, "hotset.activation": "relu"},
    )
    rope, usual = (c.config.layers[0].rope.inverse_frequencies for c in (changed, plain))
    assert rope == pytest.approx([0.5, 0.1 / 2])
    assert usual == pytest.approx([1, 0.01])
    assert changed.config.activation.value == "relu"
    assert changed.metadata["llama.rope.freq_base"] == 100
    convert(changed, tmp_path / "o.gguf", random_profile(changed))
    stored = open_checkpoint(tmp_path / "o.gguf")
    assert stored.config.layers[0].rope == changed.config.layers[0].rope
    assert stored.metadata["hotset.activation"] == "relu"
    assert isinstance(stored.metadata["llama.rope.freq_base"], float)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"split.count": 1}, "split.count says how the file lies"),
        ({"general.alignment": 64}, "general.alignment says how the file lies"),
        (
            {"general.architecture": 7},
            "general.architecture is text: write --override general.architecture=str:7",
        ),
        (
            {"falcon.block_count": 1},
            "falcon.block_count: nothing reads this key of a model of architecture llama",
        ),
        ({"pre": "x"}, "pre: nothing reads this key"),
    ],
)
def test_overrides_that_cannot_be_made(opened: Any, overrides: Overrides, message: str) -> None:
    with pytest.raises(RequestError, match=message) as error:
        opened(tiny_llama(), overrides)
    assert "--override" in str(error.value)


def test_overrides_are_checked_as_values_of_files_are(opened: Any) -> None:
    with pytest.raises(CheckpointError, match=r"llama.block_count: expected an integer .* found 'x'"):
        opened(tiny_llama(), {"llama.block_count": "x"})
    with pytest.raises(CheckpointError, match=r"general.architecture: expected one of"):
        opened(tiny_llama(), {"general.architecture": "mamba"})


def test_overrides_of_a_directory(tmp_path: Path) -> None:
    from helpers.tiny_models import llama, save

    save(llama(), tmp_path / "m")
    assert open_checkpoint(tmp_path / "m", {"max_position_embeddings": 64}).config.context_length == 64
    scaled = open_checkpoint(
        tmp_path / "m", {"rope_parameters.rope_type": "linear", "rope_parameters.factor": 4}
    )
    plain = open_checkpoint(tmp_path / "m").config.layers[0].rope.inverse_frequencies
    assert np.multiply(scaled.config.layers[0].rope.inverse_frequencies, 4) == pytest.approx(plain)
    with pytest.raises(RequestError, match=r"tokenizer.ggml.pre: config.json has no table tokenizer"):
        open_checkpoint(tmp_path / "m", {"tokenizer.ggml.pre": "x"})
    with pytest.raises(CheckpointError, match=r"hidden_act: expected one of"):
        open_checkpoint(tmp_path / "m", {"hidden_act": "mish"})
