"""Shapes of families whose layers differ or are of their own kind, for `synthetic.py`.

A file with fewer layers than the model has as much less of its vocabulary, so that the output matrix keeps
its share of what a token reads.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


class Tensors(Protocol):
    """Takes a model's tensors one by one, in file order."""

    def matrix(self, name: str, rows: int, columns: int) -> None:
        """A matrix of the type wanted."""

    def stack(self, name: str, count: int, rows: int, columns: int) -> None:
        """So many matrices of the type wanted as one tensor."""

    def mixture(self, block: str, count: int, size: int, parts: tuple[str, ...]) -> None:
        """A router, and these `parts` of gate, up and down of `count` experts of `size` neurons."""

    def vector(self, name: str, *sizes: int, fill: float | None = 1.0) -> None:
        """Numbers that are never quantised; random ones where `fill` is None."""

    def norm(self, name: str) -> None:
        """A norm of hidden vectors."""


@dataclass(frozen=True)
class Family(ABC):
    """A published model's sizes; names as in GGUF."""

    architecture: str
    vocab: int
    context: int
    hidden: int
    layers: int
    heads: int
    tied: bool
    output_norm: str = "output_norm"

    def cut_vocab(self, layers: int) -> int:
        """Tokens of a file with so many layers; see the module's docstring."""
        return max(512, round(self.vocab * min(1.0, layers / self.layers)))

    def keys(self, layers: int) -> dict[str, Any]:
        """GGUF's key-values without the architecture's name before them."""
        return {
            "block_count": layers,
            "context_length": self.context,
            "embedding_length": self.hidden,
            "attention.head_count": self.heads,
            "vocab_size": self.cut_vocab(layers),
        }

    def before(self, to: Tensors, layers: int) -> None:  # noqa: B027 (most families have none)
        """Tensors that belong to no layer, but for embedding, last norm and output."""

    @abstractmethod
    def layer(self, to: Tensors, i: int) -> None:
        """The tensors of layer `i`."""


@dataclass(frozen=True)
class Gemma4(Family):
    """Windowed layers, and every `period`-th that attends to all: that one's heads are twice as large."""

    ffn: int = 0
    kv_heads: int = 1
    full_kv_heads: int = 1
    period: int = 6
    window: int = 1024
    sharing: int = 0
    """So many last layers read other layers' keys and values, and have FFNs twice as wide."""
    own_input: int = 0
    """Numbers of each layer's own embedding of a token."""
    same_values: bool = False
    """Layers that attend to all have no matrix for values, but the keys'."""
    experts: int = 0
    experts_used: int = 0
    experts_size: int = 0
    head: int = 256

    def full(self, i: int) -> bool:
        """Whether a layer attends to all positions."""
        return (i + 1) % self.period == 0

    def shares(self, i: int) -> bool:
        """Whether a layer has no keys and values of its own."""
        return i >= self.layers - self.sharing

    def ffn_size(self, i: int) -> int:
        """Neurons of a layer's FFN."""
        return self.ffn * (1 + self.shares(i))

    def keys(self, layers: int) -> dict[str, Any]:
        """See `Family`."""
        each = range(layers)
        kv = [self.full_kv_heads if self.full(i) else self.kv_heads for i in each]
        found = super().keys(layers) | {
            "attention.head_count_kv": np.array(kv, np.int32),
            "attention.layer_norm_rms_epsilon": 1e-6,
            "attention.key_length": 2 * self.head,
            "attention.value_length": 2 * self.head,
            "attention.key_length_swa": self.head,
            "attention.value_length_swa": self.head,
            "attention.sliding_window": self.window,
            "attention.sliding_window_pattern": np.array([not self.full(i) for i in each]),
            "attention.shared_kv_layers": sum(self.shares(i) for i in each),
            "embedding_length_per_layer_input": self.own_input,
            "feed_forward_length": np.array([self.ffn_size(i) for i in each], np.int32),
            "final_logit_softcapping": 30.0,
            "rope.dimension_count": 2 * self.head,
            "rope.dimension_count_swa": self.head,
            "rope.freq_base": 1e6,
            "rope.freq_base_swa": 1e4,
        }
        if self.experts:
            found |= {
                "expert_count": self.experts,
                "expert_used_count": self.experts_used,
                "expert_feed_forward_length": self.experts_size,
            }
        return found

    def before(self, to: Tensors, layers: int) -> None:
        """See `Family`."""
        to.vector("rope_freqs.weight", self.head)
        if self.own_input:
            to.matrix("per_layer_token_embd", self.cut_vocab(layers), layers * self.own_input)
            to.matrix("per_layer_model_proj", layers * self.own_input, self.hidden)
            to.vector("per_layer_proj_norm.weight", self.own_input)

    def layer(self, to: Tensors, i: int) -> None:
        """See `Family`."""
        block, full = f"blk.{i}", self.full(i)
        head = 2 * self.head if full else self.head
        kv = (self.full_kv_heads if full else self.kv_heads) * head
        to.norm(f"{block}.attn_norm")
        to.matrix(f"{block}.attn_q", self.heads * head, self.hidden)
        to.vector(f"{block}.attn_q_norm.weight", head)
        if not self.shares(i):
            to.matrix(f"{block}.attn_k", kv, self.hidden)
            to.vector(f"{block}.attn_k_norm.weight", head)
            if not (full and self.same_values):
                to.matrix(f"{block}.attn_v", kv, self.hidden)
        to.matrix(f"{block}.attn_output", self.hidden, self.heads * head)
        to.norm(f"{block}.post_attention_norm")
        to.norm(f"{block}.ffn_norm")
        to.matrix(f"{block}.ffn_gate", self.ffn_size(i), self.hidden)
        to.matrix(f"{block}.ffn_up", self.ffn_size(i), self.hidden)
        to.matrix(f"{block}.ffn_down", self.hidden, self.ffn_size(i))
        to.norm(f"{block}.post_ffw_norm")
        if self.experts:
            to.mixture(block, self.experts, self.experts_size, ("gate", "up", "down"))
            to.vector(f"{block}.ffn_gate_inp.scale", self.hidden)
            to.vector(f"{block}.ffn_down_exps.scale", self.experts)
            for name in ("post_ffw_norm_1", "post_ffw_norm_2", "pre_ffw_norm_2"):
                to.norm(f"{block}.{name}")
        if self.own_input:
            to.matrix(f"{block}.inp_gate", self.own_input, self.hidden)
            to.matrix(f"{block}.proj", self.hidden, self.own_input)
            to.norm(f"{block}.post_norm")
        to.vector(f"{block}.layer_output_scale.weight", 1)


@dataclass(frozen=True)
class Lfm2(Family):
    """Short convolutions, and attention in some layers."""

    ffn: int = 0
    kv_heads: int = 8
    attends: tuple[int, ...] = ()
    kernel: int = 3

    def keys(self, layers: int) -> dict[str, Any]:
        """See `Family`."""
        kv = [self.kv_heads if i in self.attends else 0 for i in range(layers)]
        return super().keys(layers) | {
            "attention.head_count_kv": np.array(kv, np.int32),
            "attention.layer_norm_rms_epsilon": 1e-5,
            "feed_forward_length": self.ffn,
            "rope.freq_base": 1e6,
            "shortconv.l_cache": self.kernel,
        }

    def layer(self, to: Tensors, i: int) -> None:
        """See `Family`."""
        block, hidden, head = f"blk.{i}", self.hidden, self.hidden // self.heads
        to.norm(f"{block}.attn_norm")
        if i in self.attends:
            to.matrix(f"{block}.attn_q", hidden, hidden)
            to.matrix(f"{block}.attn_k", self.kv_heads * head, hidden)
            to.matrix(f"{block}.attn_v", self.kv_heads * head, hidden)
            to.vector(f"{block}.attn_q_norm.weight", head)
            to.vector(f"{block}.attn_k_norm.weight", head)
            to.matrix(f"{block}.attn_output", hidden, hidden)
        else:
            to.matrix(f"{block}.shortconv.in_proj", 3 * hidden, hidden)
            to.vector(f"{block}.shortconv.conv.weight", hidden, self.kernel, fill=None)
            to.matrix(f"{block}.shortconv.out_proj", hidden, hidden)
        to.norm(f"{block}.ffn_norm")
        to.matrix(f"{block}.ffn_gate", self.ffn, hidden)
        to.matrix(f"{block}.ffn_up", self.ffn, hidden)
        to.matrix(f"{block}.ffn_down", hidden, self.ffn)


@dataclass(frozen=True)
class Nemotron(Family):
    """Blocks of one part each: Mamba-2 (M), experts (E) or attention (*)."""

    pattern: str = ""
    kv_heads: int = 2
    head: int = 128
    experts: int = 128
    experts_used: int = 6
    experts_size: int = 1856
    shared_size: int = 3712
    state_heads: int = 64
    state_head: int = 64
    state: int = 128
    groups: int = 8
    kernel: int = 4

    @property
    def inner(self) -> int:
        """Numbers of all of a state's heads."""
        return self.state_heads * self.state_head

    def keys(self, layers: int) -> dict[str, Any]:
        """See `Family`."""
        kinds = self.pattern[:layers]
        ffn = [self.experts_size if kind == "E" else 0 for kind in kinds]
        kv = [self.kv_heads if kind == "*" else 0 for kind in kinds]
        return super().keys(layers) | {
            "attention.head_count_kv": np.array(kv, np.int32),
            "attention.key_length": self.head,
            "attention.value_length": self.head,
            "attention.layer_norm_epsilon": 1e-5,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "feed_forward_length": np.array(ffn, np.int32),
            "expert_count": self.experts,
            "expert_used_count": self.experts_used,
            "expert_feed_forward_length": self.experts_size,
            "expert_shared_count": 1,
            "expert_shared_feed_forward_length": self.shared_size,
            "expert_gating_func": 2,
            "expert_weights_norm": True,
            "expert_weights_scale": 2.5,
            "ssm.conv_kernel": self.kernel,
            "ssm.group_count": self.groups,
            "ssm.inner_size": self.inner,
            "ssm.state_size": self.state,
            "ssm.time_step_rank": self.state_heads,
        }

    def layer(self, to: Tensors, i: int) -> None:
        """See `Family`."""
        block, hidden, inner = f"blk.{i}", self.hidden, self.inner
        to.norm(f"{block}.attn_norm")
        match self.pattern[i]:
            case "M":
                channels = inner + 2 * self.groups * self.state
                to.matrix(f"{block}.ssm_in", inner + channels + self.state_heads, hidden)
                to.vector(f"{block}.ssm_conv1d.weight", channels, self.kernel, fill=None)
                to.vector(f"{block}.ssm_conv1d.bias", channels, fill=0.0)
                to.vector(f"{block}.ssm_dt.bias", self.state_heads)
                to.vector(f"{block}.ssm_a", self.state_heads, 1, fill=-0.1)
                to.vector(f"{block}.ssm_d", self.state_heads, 1)
                to.vector(f"{block}.ssm_norm.weight", self.groups, inner // self.groups)
                to.matrix(f"{block}.ssm_out", hidden, inner)
            case "E":
                to.mixture(block, self.experts, self.experts_size, ("up", "down"))
                to.vector(f"{block}.exp_probs_b.bias", self.experts, fill=0.0)
                to.matrix(f"{block}.ffn_up_shexp", self.shared_size, hidden)
                to.matrix(f"{block}.ffn_down_shexp", hidden, self.shared_size)
            case _:
                to.matrix(f"{block}.attn_q", self.heads * self.head, hidden)
                to.matrix(f"{block}.attn_k", self.kv_heads * self.head, hidden)
                to.matrix(f"{block}.attn_v", self.kv_heads * self.head, hidden)
                to.matrix(f"{block}.attn_output", hidden, self.heads * self.head)


@dataclass(frozen=True)
class Latent(Family):
    """Multi-head latent attention; mixtures with a shared expert but in the first layer."""

    ffn: int = 0
    query_rank: int = 768
    rank: int = 512
    rope: int = 64
    nope: int = 192
    value: int = 256
    experts: int = 64
    experts_used: int = 4
    experts_size: int = 1536

    def keys(self, layers: int) -> dict[str, Any]:
        """See `Family`."""
        return super().keys(layers) | {
            "attention.head_count_kv": 1,
            "attention.key_length": self.rank + self.rope,
            "attention.value_length": self.rank,
            "attention.key_length_mla": self.nope + self.rope,
            "attention.value_length_mla": self.value,
            "attention.q_lora_rank": self.query_rank,
            "attention.kv_lora_rank": self.rank,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "feed_forward_length": self.ffn,
            "leading_dense_block_count": 1,
            "expert_count": self.experts,
            "expert_used_count": self.experts_used,
            "expert_feed_forward_length": self.experts_size,
            "expert_shared_count": 1,
            "expert_gating_func": 2,
            "expert_weights_norm": True,
            "expert_weights_scale": 1.8,
            "rope.dimension_count": self.rope,
            "rope.freq_base": 1e6,
        }

    def layer(self, to: Tensors, i: int) -> None:
        """See `Family`."""
        block, hidden, heads = f"blk.{i}", self.hidden, self.heads
        to.norm(f"{block}.attn_norm")
        to.matrix(f"{block}.attn_q_a", self.query_rank, hidden)
        to.vector(f"{block}.attn_q_a_norm.weight", self.query_rank)
        to.matrix(f"{block}.attn_q_b", heads * (self.nope + self.rope), self.query_rank)
        to.matrix(f"{block}.attn_kv_a_mqa", self.rank + self.rope, hidden)
        to.vector(f"{block}.attn_kv_a_norm.weight", self.rank)
        to.stack(f"{block}.attn_k_b", heads, self.rank, self.nope)
        to.stack(f"{block}.attn_v_b", heads, self.value, self.rank)
        to.matrix(f"{block}.attn_output", hidden, heads * self.value)
        to.norm(f"{block}.ffn_norm")
        if i:
            to.mixture(block, self.experts, self.experts_size, ("gate", "up", "down"))
            to.vector(f"{block}.exp_probs_b.bias", self.experts, fill=0.0)
        size, end = (self.experts_size, "_shexp") if i else (self.ffn, "")
        to.matrix(f"{block}.ffn_gate{end}", size, hidden)
        to.matrix(f"{block}.ffn_up{end}", size, hidden)
        to.matrix(f"{block}.ffn_down{end}", hidden, size)


FAMILIES: dict[str, Family] = {
    "gemma-4-26b-a4b": Gemma4(
        *("gemma4", 262144, 262144, 2816, 30, 16, True),
        ffn=2112,
        kv_heads=8,
        full_kv_heads=2,
        same_values=True,
        experts=128,
        experts_used=8,
        experts_size=704,
    ),
    "gemma-4-e2b": Gemma4(
        *("gemma4", 262144, 131072, 1536, 35, 8, True),
        ffn=6144,
        period=5,
        window=512,
        sharing=20,
        own_input=256,
    ),
    "glm-4.7-flash": Latent(*("deepseek2", 154880, 202752, 2048, 47, 20, False), ffn=10240),
    "lfm2-1.2b": Lfm2(
        *("lfm2", 65536, 128000, 2048, 16, 32, True, "token_embd_norm"),
        ffn=8192,
        attends=(2, 5, 8, 10, 12, 14),
    ),
    "nemotron-3-nano-30b-a3b": Nemotron(
        *("nemotron_h_moe", 131072, 1 << 20, 2688, 52, 32, False),
        pattern="MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
    ),
}
