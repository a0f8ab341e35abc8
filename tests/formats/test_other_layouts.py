"""Checkpoints laid out otherwise: multimodal ones, base models' names, tied flags that are not so.

transformers tells the logits.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.parity import LENGTH, TOKENS, assert_close, run_peer
from helpers.tiny_families import ernie4_5_moe, gemma4_shared
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


def gemma4_with_images_and_sound() -> Any:
    """As E2B, its layers for text two of which share keys and values."""
    from transformers import Gemma4Config, Gemma4ForConditionalGeneration

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {"intermediate_size": 20, "num_key_value_heads": 2, "head_dim": 8, "position_embedding_size": 16}
    text = gemma4_shared().config.to_dict()
    return Gemma4ForConditionalGeneration(
        Gemma4Config(
            text_config=text,
            vision_config=sizes | vision | {"patch_size": 2},
            audio_config=sizes | {"output_proj_dims": 12},
            image_token_id=203,
            video_token_id=202,
            audio_token_id=201,
        )
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


def test_what_joins_images_and_sound_to_text_is_left_out(tmp_path: Path) -> None:
    """Gemma 4's directories have ``embed_vision`` and ``embed_audio`` beside the towers."""
    model = gemma4_with_images_and_sound()
    save(model, tmp_path / "m")
    names = set(load_file(tmp_path / "m" / "model.safetensors"))
    assert {"model.embed_vision", "model.embed_audio"} <= {".".join(name.split(".")[:2]) for name in names}
    checkpoint = open_checkpoint(tmp_path / "m")
    left_out = sum("language_model" not in name for name in names)
    assert checkpoint.notes[0].startswith(f"{left_out} tensors for images and sound are left out")
    assert_close(logits(checkpoint), run_peer(model), 1e-4)


def test_shared_keys_that_a_file_has_all_the_same(tmp_path: Path) -> None:
    """Google's directories have keys and values of layers that read another's; nobody computes them."""
    model = gemma4_shared()
    save(model, tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    tensors = load_file(path)
    for part in ("k_proj", "v_proj", "k_norm"):
        own = tensors[f"model.layers.2.self_attn.{part}.weight"]
        tensors[f"model.layers.4.self_attn.{part}.weight"] = own * 0.5
    save_file(tensors, path)
    assert_close(logits(open_checkpoint(tmp_path / "m")), run_peer(model), 1e-4)


def test_what_predicts_further_tokens_has_many_names(tmp_path: Path) -> None:
    """Baidu's directories have ``mtp_block`` and others beside the layers."""
    model = ernie4_5_moe()
    save(model, tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    further = ("mtp_block.0.mlp.up_proj", "mtp_emb_norm.0", "mtp_hidden_norm.0", "mtp_linear_proj.0")
    tensors = {f"model.{name}.weight": np.ones(3, np.float32) for name in further}
    save_file(load_file(path) | tensors, path)
    checkpoint = open_checkpoint(tmp_path / "m")
    assert checkpoint.notes[0].startswith("4 tensors that predict several tokens at once are left out")
    assert_close(logits(checkpoint), run_peer(model), 1e-4)


def test_a_tied_flag_beside_text_config(tmp_path: Path) -> None:
    """transformers 5 heeds the one beside it, older versions the one within."""
    model = gemma3_with_images()
    save(model, tmp_path / "m")
    expected = logits(open_checkpoint(tmp_path / "m"))
    rename(tmp_path / "m", lambda name: name if not name.startswith("lm_head") else "")
    for whole, text in ((True, False), (False, True)):
        path = tmp_path / "m" / "config.json"
        config = json.loads(path.read_text())
        config["text_config"]["tie_word_embeddings"] = text
        path.write_text(json.dumps(config | {"tie_word_embeddings": whole}))
        assert_close(logits(open_checkpoint(tmp_path / "m")), expected, 0.0)


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
