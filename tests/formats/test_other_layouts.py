"""Checkpoints laid out otherwise: multimodal ones, base models' names, tied flags that are not so.

transformers tells the logits.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.parity import LENGTH, TOKENS, assert_close, run_peer
from helpers.tiny_models import falcon_7b, gemma3, llama, opt, qwen2, save
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from hotset.backends.reference import ReferenceBackend
from hotset.convert.quantize import quantise_model
from hotset.core.batch import Batch
from hotset.core.errors import CheckpointError
from hotset.formats import Checkpoint, TensorType, open_checkpoint
from hotset.model.build import build_transformer


def logits(checkpoint: Checkpoint) -> NDArray[np.float32]:
    model = build_transformer(checkpoint, ReferenceBackend())
    return model.forward(Batch.of(model.sequence(LENGTH, "f32"), TOKENS, logits=None))


def rename(directory: Path, change: Any) -> Path:
    """Change the names of a directory's tensors; None leaves one out."""
    path = directory / "model.safetensors"
    tensors = {change(name): values for name, values in load_file(path).items()}
    save_file({name: values for name, values in tensors.items() if name}, path)
    return directory


def edit(directory: Path, **changes: Any) -> Path:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return directory


def gemma3_with_images() -> Any:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    vision = {
        "hidden_size": 16,
        "intermediate_size": 20,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    text = gemma3().config.to_dict()
    return Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=100)
    )


def published(name: str) -> str:
    """The names of Google's own directories, as older versions of transformers write them too."""
    name = name.replace("model.language_model.", "language_model.model.")
    name = name.replace("lm_head.", "language_model.lm_head.")
    return name.removeprefix("model.") if name.startswith(("model.vision", "model.multi")) else name


@pytest.mark.parametrize("names", [str, published], ids=["transformers 5", "published"])
def test_a_multimodal_directory_is_opened_by_its_text_part(names: Any, tmp_path: Path) -> None:
    model = gemma3_with_images()
    save(model, tmp_path / "m")
    rename(tmp_path / "m", names)
    checkpoint = open_checkpoint(tmp_path / "m")
    assert checkpoint.config.architecture == "gemma3"
    images = [name for name in load_file(tmp_path / "m" / "model.safetensors") if "language" not in name]
    images = [name for name in images if not name.startswith("lm_head")]
    assert checkpoint.notes == (
        f"{len(images)} tensors for images and sound are left out: only the text part of the model is run",
    )
    assert_close(logits(checkpoint), run_peer(model), 1e-4)
    quantise_model(checkpoint, tmp_path / "q.gguf", TensorType.Q8_0)  # as a model of text alone
    assert open_checkpoint(tmp_path / "q.gguf").notes == ()


def test_a_published_text_config_leaves_defaults_out(tmp_path: Path) -> None:
    """Google's config.json of Gemma 3 4B has five keys in text_config."""
    save(gemma3_with_images(), tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    config = json.loads(path.read_text())
    kept = (
        "hidden_size",
        "intermediate_size",
        "model_type",
        "num_hidden_layers",
        "rope_scaling",
        "sliding_window",
    )
    text = {key: value for key, value in config["text_config"].items() if key in kept}
    path.write_text(json.dumps(config | {"text_config": text}))
    with pytest.raises(CheckpointError, match=r"expected shape \[262208, 42\], found \[101, 42\]"):
        open_checkpoint(tmp_path / "m")


BASE = {"llama": llama, "qwen2": qwen2, "falcon": falcon_7b, "opt": opt}


@pytest.mark.parametrize("name", BASE)
def test_names_without_the_models_prefix(name: str, tmp_path: Path) -> None:
    """As ``AutoModel`` saves them; the head, where there is one, was put beside."""
    model = BASE[name]()
    save(model, tmp_path / "m")
    expected = logits(open_checkpoint(tmp_path / "m"))
    rename(tmp_path / "m", lambda key: key.removeprefix("model.").removeprefix("transformer."))
    assert_close(logits(open_checkpoint(tmp_path / "m")), expected, 0.0)
    assert_close(expected, run_peer(model), 1e-4)


def test_a_tied_flag_beside_another_matrix(tmp_path: Path) -> None:
    model = llama()
    save(model, tmp_path / "m")
    expected = logits(open_checkpoint(tmp_path / "m"))
    edit(tmp_path / "m", tie_word_embeddings=True)
    checkpoint = open_checkpoint(tmp_path / "m")
    assert "lm_head.weight is another matrix" in checkpoint.notes[0]
    assert_close(logits(checkpoint), expected, 0.0)
    assert_close(expected, run_peer(model), 1e-4)


def test_a_tied_flag_beside_a_copy(tmp_path: Path) -> None:
    model = llama(tie_word_embeddings=True)
    save(model, tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].copy()}, path)
    checkpoint = open_checkpoint(tmp_path / "m")
    assert (checkpoint.notes, "output.weight" in checkpoint.tensors) == ((), False)
    assert_close(logits(checkpoint), run_peer(model), 1e-4)


def test_only_the_output_of_a_tied_pair(tmp_path: Path) -> None:
    model = llama(tie_word_embeddings=True)
    save(model, tmp_path / "m")
    rename(tmp_path / "m", lambda key: "lm_head.weight" if "embed_tokens" in key else key)
    checkpoint = open_checkpoint(tmp_path / "m")
    assert_close(logits(checkpoint), run_peer(model), 1e-4)
    edit(tmp_path / "m", tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"tensor token_embd.weight is missing"):
        open_checkpoint(tmp_path / "m")


def test_a_tensor_under_two_names(tmp_path: Path) -> None:
    save(llama(), tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"norm.weight": tensors["model.norm.weight"].copy()}, path)
    with pytest.raises(CheckpointError, match=r"tensor 'output_norm.weight' is there twice"):
        open_checkpoint(tmp_path / "m")


def test_errors_have_a_public_name() -> None:
    from hotset import errors

    assert issubclass(errors.CheckpointError, errors.HotsetError)
    assert errors.CheckpointError is CheckpointError
