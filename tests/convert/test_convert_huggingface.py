"""Hugging Face directories stored by neuron: the same logits, the same tokens."""

import json
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from helpers.parity import LENGTH, TOKENS, assert_close
from helpers.profiles import random_profile
from helpers.tiny_models import save, tiny_models
from numpy.typing import NDArray

from hotset.backends.reference import ReferenceBackend
from hotset.convert.by_neuron import convert
from hotset.core.batch import Batch
from hotset.core.errors import CheckpointError
from hotset.formats import Checkpoint, open_checkpoint
from hotset.model.build import build_transformer
from hotset.tokenizer import Tokenizer


def logits(checkpoint: Checkpoint) -> NDArray[np.float32]:
    model = build_transformer(checkpoint, ReferenceBackend())
    return model.forward(Batch.of(model.sequence(LENGTH, "f32"), TOKENS, logits=None))


@pytest.mark.parametrize("name", tiny_models())
def test_architecture(name: str, tmp_path: Path) -> None:
    save(tiny_models()[name](), tmp_path / "model", dtype="float16")
    source = open_checkpoint(tmp_path / "model")
    if source.config.recurrent:
        with pytest.raises(CheckpointError, match="recurrent layers are written from GGUF files only"):
            convert(source, tmp_path / "o.gguf", random_profile(source))
        return
    convert(source, tmp_path / "o.gguf", random_profile(source))
    converted = open_checkpoint(tmp_path / "o.gguf")
    assert all(layer.ffn for layer in converted.config.layers)
    assert_close(logits(converted), logits(source), 1e-5)


def test_what_gguf_cannot_say_is_refused(tmp_path: Path) -> None:
    save(tiny_models()["gemma3"](), tmp_path / "model")
    source = open_checkpoint(tmp_path / "model")
    first, *others = source.config.layers
    layers = (replace(first, window=first.window and first.window + 1), *others)  # two windows' sizes
    source = replace(source, config=replace(source.config, layers=layers))
    with pytest.raises(CheckpointError, match="no key for this model's options: .* would be lost"):
        convert(source, tmp_path / "o.gguf", random_profile(source))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_tokenizer_comes_along(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Trained
    from tokenizers import decoders, models, pre_tokenizers, trainers

    save(tiny_models()["qwen2"](), tmp_path / "model")
    trained = Trained(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trained.train_from_iterator(
        ["the neuron that fires is hot"] * 3,
        trainers.BpeTrainer(vocab_size=90, special_tokens=["<|im_start|>", "<|im_end|>"]),
    )
    trained.save(str(tmp_path / "model" / "tokenizer.json"))
    template = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    (tmp_path / "model" / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|im_end|>", "chat_template": template})
    )
    source = open_checkpoint(tmp_path / "model")
    convert(source, tmp_path / "o.gguf", random_profile(source))
    expected, found = (Tokenizer.from_checkpoint(c) for c in (source, open_checkpoint(tmp_path / "o.gguf")))
    text = "hot<|im_end|>then that neuron"
    ids = expected.encode(text)
    assert len(ids) > 5
    assert found.encode(text) == ids
    assert found.decode(ids) == expected.decode(ids)
    assert (found.end_ids, found.bos_id) == (expected.end_ids, expected.bos_id)
    embedded = gguf.GGUFReader(tmp_path / "o.gguf").fields["tokenizer.huggingface.json"].contents()
    assert embedded == (tmp_path / "model" / "tokenizer.json").read_text()
    messages = [{"role": "user", "content": "the fires"}]
    assert found.encode_chat(messages) == expected.encode_chat(messages)

    # A file stored by neuron that is sorted again keeps it.
    converted = open_checkpoint(tmp_path / "o.gguf")
    convert(converted, tmp_path / "p.gguf", random_profile(converted, seed=1))
    assert Tokenizer.from_checkpoint(open_checkpoint(tmp_path / "p.gguf")).encode(text) == ids
