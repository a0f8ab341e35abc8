"""A Hugging Face model's tensors under their final names."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hotset.architectures.row import Architecture
from hotset.core.config import DeltaNetConfig
from hotset.formats import delta_net, latent
from hotset.formats.experts import Stacks, add_gate_up, add_transposed
from hotset.formats.tensor import Tensor
from hotset.formats.tensor_table import ONLY_BIAS, Sizes, TensorTable, is_global, is_norm

_EXPERT = re.compile(r"(.*\.experts\.)(\d{1,5})(\..*)")
_STACKS = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
_COMPARED = 1 << 24
"""Bytes compared at a time."""
_ENDS = ("token_embd.weight", "output.weight")
_OF_LAYER = re.compile(r"model\.layers\.(\d{1,9})\.")
_PREDICTING = ("mtp.", "mtp_")
_TEXT = ("language_model.", "lm_head.")
_NO_TEXT = ("vision_tower.", "visual.", "vision_model.", "multi_modal_projector.", "audio_tower.")


def final_names(
    directory: Path, files: Mapping[str, Tensor], architecture: Architecture, sizes: Sizes, *, tied: bool
) -> tuple[TensorTable, bool]:
    """Give the tensors their final names; whether the output is another matrix although it should be tied."""
    table = TensorTable(str(directory))
    targets = _targets(architecture, sizes)
    stacks = Stacks(str(directory), sizes.experts.count if sizes.experts else 0)
    ends: dict[str, Tensor] = {}
    for name, tensor in files.items():
        expert = _EXPERT.fullmatch(name)
        pattern = f"{expert[1]}*{expert[3]}" if expert else name
        target = next((targets[known] for known in _spellings(pattern) if known in targets), None)
        if target is None:
            table.add(name, tensor)  # the check will name it
        elif sizes.own and target.part in sizes.own[target.layer].lacking:
            continue  # a layer that reads another's keys and values has no use for its own
        elif expert:
            if not stacks.take(target.name, pattern, int(expert[2]), tensor):
                table.add(name, tensor)
        elif tied and target.name in _ENDS and target.name not in ends:
            ends[target.name] = tensor
        else:
            _add(table, target, tensor, architecture, sizes)
    stacks.add_to(table)
    if ends:
        embedding = ends.get("token_embd.weight") or ends["output.weight"]
        table.add("token_embd.weight", embedding)
        output = ends.get("output.weight", embedding)
        if not _same(output, embedding):
            table.add("output.weight", output)
    return table, tied and "output.weight" in table


@dataclass(frozen=True)
class _Target:
    """What a tensor of the files is, or has in it."""

    part: str
    layer: int
    suffix: str

    @property
    def name(self) -> str:
        name = f"{self.part}.{self.suffix}"
        return name if is_global(self.part) else f"blk.{self.layer}.{name}"


def _targets(architecture: Architecture, sizes: Sizes) -> dict[str, _Target]:
    """By Hugging Face's names, ``*`` standing for an expert's number."""
    targets: dict[str, _Target] = {}
    for part, modules in architecture.tensors.items():
        for module in modules.split("|"):
            for layer in range(1 if is_global(part) else sizes.layers):
                bare = module.format(layer)
                weight, bias = _Target(part, layer, "weight"), _Target(part, layer, "bias")
                targets[f"{bare}.weight"], targets[f"{bare}.bias"] = weight, bias
                # Stacks of all experts; A_log and dt_bias; factors.
                if sizes.experts or sizes.kinds.recurrent or part.endswith("_scale"):
                    targets[bare] = bias if part == ONLY_BIAS else weight
                    targets[f"{bare}_bias"] = bias
    return targets


def _add(
    table: TensorTable, target: _Target, tensor: Tensor, architecture: Architecture, sizes: Sizes
) -> None:
    part, layer, suffix = target.part, target.layer, target.suffix
    transposed = bool(architecture.experts and architecture.experts.hf_transposed)
    if part in delta_net.FUSED and isinstance(sizes.kinds.recurrent, DeltaNetConfig):
        delta_net.add_fused(table, layer, part, tensor, sizes.kinds.recurrent)
    elif part in delta_net.VECTORS:
        delta_net.add_vector(table, target.name, part, tensor)
    elif part == latent.FUSED and suffix == "weight":
        latent.add_fused(table, layer, tensor, sizes)
    elif part == "attn_qkv" and architecture.fused_qkv:
        table.add_fused(layer, suffix, tensor, sizes, grouped=architecture.hf_qkv_by_head)
    elif part in ("ffn_gate_up", "ffn_gate_up_shexp"):
        table.add_gate_up(layer, suffix, tensor, sizes, shared=part.endswith("shexp"))
    elif part == "ffn_gate_up_exps":
        add_gate_up(table, layer, suffix, tensor, sizes, transposed=transposed)
    elif part in _STACKS and suffix == "weight" and transposed:
        add_transposed(table, target.name, tensor)
    elif architecture.norm_weight_plus_one and is_norm(part) and suffix == "weight":
        table.add_plus_one(target.name, tensor)
    else:
        table.add(target.name, tensor)


def _spellings(name: str) -> Iterator[str]:
    """What a tensor may be called in the table: base models and multimodal ones have other prefixes."""
    yield name
    bare = name.removeprefix("model.").removeprefix("language_model.").removeprefix("model.")
    yield from (bare, f"model.{bare}", f"transformer.{bare}")


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same numbers, as bytes."""
    if (one.type, one.shape) != (other.type, other.shape):
        return False
    starts = range(0, one.nbytes, _COMPARED)
    return one is other or all(
        np.array_equal(one.data[start : start + _COMPARED], other.data[start : start + _COMPARED])
        for start in starts
    )


def text_part(files: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A multimodal model's tensors without those for images and sound.

    Where the text has a module of its own, only the head and what predicts further tokens lie beside it.
    """
    bare = {name: name.removeprefix("model.") for name in files}
    if any(own.startswith(_TEXT[0]) for own in bare.values()):
        return {name: files[name] for name, own in bare.items() if own.startswith(_TEXT + _PREDICTING)}
    return {name: files[name] for name, own in bare.items() if not own.startswith(_NO_TEXT)}


def predicts(name: str, layers: int, further: int) -> bool:
    """Whether a tensor is of what predicts further tokens, such as so many layers after the last."""
    found = _OF_LAYER.match(name)
    beyond = found is not None and layers <= int(found[1]) < layers + further
    return beyond or name.removeprefix("model.").startswith(_PREDICTING)
