"""Builds a `Transformer` from a checkpoint's tensors.

No architecture is named here: the configuration and the presence of tensors say everything. That no tensor is
missing, misshapen or left over is seen to by `hotset.formats`.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from hotset.backends.building import Backend
from hotset.backends.contract import (
    F32,
    FFN,
    AttentionSpec,
    DeltaNetSpec,
    EmbeddingSpec,
    Experts,
    ExpertsSpec,
    FFNSpec,
    HeadSpec,
    LatentSpec,
    LayerInputSpec,
    LayerInputsSpec,
    Linear,
    MambaSpec,
    Mixer,
    NeuronFFNSpec,
    Norm,
    RecurrentSpec,
    SharedExpertSpec,
    ShortConvSpec,
)
from hotset.core.config import (
    DeltaNetConfig,
    ExpertsConfig,
    FFNPlan,
    MambaConfig,
    NormKind,
    Recurrent,
    Score,
    ShortConvConfig,
)
from hotset.core.heads import LatentConfig
from hotset.formats.checkpoint import Checkpoint
from hotset.model.transformer import Absent, Layer, Transformer


def build_transformer(
    checkpoint: Checkpoint, backend: Backend, progress: Callable[[int, int], None] | None = None
) -> Transformer:
    """Build every part of the model with `backend`; `progress(done, total)` is told after each of them."""
    weights = _Weights(checkpoint)
    n_layers = checkpoint.config.n_layers

    def done(parts: int) -> None:
        if progress:
            progress(parts, n_layers + 2)

    embedding = backend.embedding(weights.embedding())
    done(1)
    layers = []
    for i in range(n_layers):
        layers.append(_layer(weights, backend, i))
        done(i + 2)
    head = backend.head(weights.head())
    done(n_layers + 2)
    inputs = backend.layer_inputs(weights.layer_inputs()) if checkpoint.config.layer_input else None
    return Transformer(checkpoint.config, backend, embedding, layers, head, inputs)


def _layer(weights: "_Weights", backend: Backend, i: int) -> Layer:
    config = weights.config
    layer = config.layers[i]
    # States are numbered kind by kind.
    recurrent = sum(before.recurrent is not None for before in config.layers[:i])
    mixer: Mixer
    if layer.recurrent:
        mixer = backend.recurrent(weights.recurrent(i, layer.recurrent), recurrent)
    elif layer.attention:
        own = config.kv_layers.index(i if layer.kv_from is None else layer.kv_from)
        if config.latent:
            mixer = backend.latent_attention(weights.latent_attention(i, config.latent), own)
        else:
            mixer = backend.attention(weights.attention(i), own)
    else:
        mixer = Absent()
    ffn: FFN
    early: Experts | None = None
    if not layer.feeds:
        ffn = Absent()
    elif layer.experts:
        ffn = experts = backend.experts(weights.experts(i, layer.experts), i)
        early = experts if layer.experts.early else None
    elif layer.ffn:
        ffn = backend.neuron_ffn(weights.neuron_ffn(i, layer.ffn), i)
    else:
        ffn = backend.ffn(weights.ffn(i))
    own_input = backend.layer_input(weights.layer_input(i)) if config.layer_input else None
    return Layer(mixer, ffn, early, own_input, layer.scale)


def embedding_spec(checkpoint: Checkpoint) -> EmbeddingSpec:
    """The token embedding."""
    return _Weights(checkpoint).embedding()


def attention_spec(checkpoint: Checkpoint, layer: int) -> AttentionSpec:
    """A layer's attention."""
    return _Weights(checkpoint).attention(layer)


def latent_spec(checkpoint: Checkpoint, layer: int) -> LatentSpec:
    """A layer's multi-head latent attention."""
    shape = checkpoint.config.latent
    if shape is None:
        raise ValueError("the model has no latent attention")
    return _Weights(checkpoint).latent_attention(layer, shape)


def recurrent_spec(checkpoint: Checkpoint, layer: int) -> RecurrentSpec:
    """A layer's recurrent mixer."""
    shape = checkpoint.config.layers[layer].recurrent
    if shape is None:
        raise ValueError(f"layer {layer} has no recurrent state")
    return _Weights(checkpoint).recurrent(layer, shape)


def experts_spec(checkpoint: Checkpoint, layer: int) -> ExpertsSpec:
    """A layer's mixture of experts."""
    shape = checkpoint.config.layers[layer].experts
    if shape is None:
        raise ValueError(f"layer {layer} is no mixture of experts")
    return _Weights(checkpoint).experts(layer, shape)


def ffn_spec(checkpoint: Checkpoint, layer: int) -> FFNSpec:
    """A layer's ordinary FFN."""
    return _Weights(checkpoint).ffn(layer)


def layer_inputs_spec(checkpoint: Checkpoint) -> LayerInputsSpec:
    """Each layer's own embedding of the tokens."""
    return _Weights(checkpoint).layer_inputs()


def layer_input_spec(checkpoint: Checkpoint, layer: int) -> LayerInputSpec:
    """What one layer's own embedding adds."""
    return _Weights(checkpoint).layer_input(layer)


def neuron_ffn_spec(checkpoint: Checkpoint, layer: int, plan: FFNPlan) -> NeuronFFNSpec:
    """A layer's FFN, stored by neuron, under a plan."""
    return _Weights(checkpoint).neuron_ffn(layer, plan)


def head_spec(checkpoint: Checkpoint) -> HeadSpec:
    """The final norm and the output projection."""
    return _Weights(checkpoint).head()


class _Weights:
    """A checkpoint's tensors, by name, as the specs of parts."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.config = checkpoint.config
        self.tensors = checkpoint.tensors

    def embedding(self) -> EmbeddingSpec:
        return EmbeddingSpec(
            tokens=self.tensors["token_embd.weight"],
            scale=self.config.embedding_scale / self.config.residual_scale,
            positions=self.tensors.get("position_embd.weight"),
            position_offset=self.config.position_offset,
        )

    def attention(self, i: int) -> AttentionSpec:
        c = self.config
        layer, heads = c.layers[i], c.heads(i)
        shared = layer.kv_from is not None
        unit = np.ones(heads.head_dim, np.float32)
        # Where a parallel layer has two norms, `attn_norm_2` is the attention's and `attn_norm` the FFN's.
        return AttentionSpec(
            norm=self.optional_norm(f"blk.{i}.attn_norm_2") or self.norm_before(f"blk.{i}.attn_norm"),
            q=self.linear(f"blk.{i}.attn_q"),
            k=None if shared else self.linear(f"blk.{i}.attn_k"),
            v=None if shared else self.optional_linear(f"blk.{i}.attn_v"),
            output=self.linear(f"blk.{i}.attn_output"),
            n_heads=heads.n_heads,
            n_kv_heads=heads.n_kv_heads,
            head_dim=heads.head_dim,
            scale=c.attention_scale or heads.head_dim**-0.5,
            rope=layer.rope,
            window=layer.window,
            q_norm=self.optional_norm(f"blk.{i}.attn_q_norm"),
            k_norm=self.optional_norm(f"blk.{i}.attn_k_norm"),
            post_norm=self.optional_norm(f"blk.{i}.post_attention_norm"),
            gated=c.gated_attention,
            head_gate=self.optional_linear(f"blk.{i}.attn_gate"),
            sinks=self.vector(f"blk.{i}.attn_sinks.weight"),
            v_norm=Norm(NormKind.RMS, c.norm_eps, unit) if c.value_norm and not shared else None,
            soft_cap=c.attention_soft_cap,
            growth=c.query_growth,
        )

    def latent_attention(self, i: int, shape: LatentConfig) -> LatentSpec:
        layer, c = f"blk.{i}", self.config
        rope = c.layers[i].rope
        assert rope is not None
        low_rank = shape.query_rank > 0

        def inner(name: str) -> Norm:
            return replace(self.norm(f"{layer}.{name}"), eps=shape.norm_eps)

        return LatentSpec(
            norm=self.norm(f"{layer}.attn_norm"),
            q_a=self.linear(f"{layer}.attn_q_a") if low_rank else None,
            q_norm=inner("attn_q_a_norm") if low_rank else None,
            q=self.linear(f"{layer}.attn_q_b" if low_rank else f"{layer}.attn_q"),
            kv_a=self.linear(f"{layer}.attn_kv_a_mqa"),
            kv_norm=inner("attn_kv_a_norm"),
            k_b=self.tensors[f"{layer}.attn_k_b.weight"],
            v_b=self.tensors[f"{layer}.attn_v_b.weight"],
            output=self.linear(f"{layer}.attn_output"),
            n_heads=c.n_heads,
            scale=c.attention_scale or shape.query_dim**-0.5,
            rope=rope,
            shape=shape,
        )

    def layer_inputs(self) -> LayerInputsSpec:
        return LayerInputsSpec(
            rows=self.tensors["per_layer_token_embd.weight"],
            project=self.linear("per_layer_model_proj"),
            norm=self.norm("per_layer_proj_norm"),
            layers=self.config.n_layers,
        )

    def layer_input(self, i: int) -> LayerInputSpec:
        return LayerInputSpec(
            gate=self.linear(f"blk.{i}.inp_gate"),
            up=self.linear(f"blk.{i}.proj"),
            post_norm=self.norm(f"blk.{i}.post_norm"),
        )

    def recurrent(self, i: int, shape: Recurrent) -> RecurrentSpec:
        match shape:
            case DeltaNetConfig():
                return self.delta_net(i, shape)
            case ShortConvConfig():
                return self.short_conv(i, shape)
            case MambaConfig():
                return self.mamba(i, shape)

    def mamba(self, i: int, shape: MambaConfig) -> MambaSpec:
        layer = f"blk.{i}"
        bias = self.vector(f"{layer}.ssm_conv1d.bias")
        return MambaSpec(
            norm=self.norm(f"{layer}.attn_norm"),
            input=self.linear(f"{layer}.ssm_in"),
            conv=self.tensors[f"{layer}.ssm_conv1d.weight"].to_float32(),
            conv_bias=np.zeros(shape.channels, np.float32) if bias is None else bias,
            dt_bias=self.tensors[f"{layer}.ssm_dt.weight"].to_float32(),
            decay=self.tensors[f"{layer}.ssm_a.weight"].to_float32(),
            skip=self.tensors[f"{layer}.ssm_d.weight"].to_float32(),
            # Not of hidden vectors.
            out_norm=replace(self.norm(f"{layer}.ssm_norm"), eps=self.config.norm_eps),
            output=self.linear(f"{layer}.ssm_out"),
            shape=shape,
        )

    def short_conv(self, i: int, shape: ShortConvConfig) -> ShortConvSpec:
        return ShortConvSpec(
            norm=self.norm(f"blk.{i}.attn_norm"),
            input=self.linear(f"blk.{i}.shortconv_in"),
            conv=self.tensors[f"blk.{i}.shortconv_conv.weight"].to_float32(),
            output=self.linear(f"blk.{i}.shortconv_out"),
            shape=shape,
        )

    def delta_net(self, i: int, shape: DeltaNetConfig) -> DeltaNetSpec:
        layer = f"blk.{i}"
        return DeltaNetSpec(
            norm=self.norm(f"{layer}.attn_norm"),
            qkv=self.linear(f"{layer}.attn_qkv"),
            z=self.linear(f"{layer}.attn_gate"),
            beta=self.linear(f"{layer}.ssm_beta"),
            alpha=self.linear(f"{layer}.ssm_alpha"),
            conv=self.tensors[f"{layer}.ssm_conv1d.weight"].to_float32(),
            dt_bias=self.tensors[f"{layer}.ssm_dt.weight"].to_float32(),
            decay=self.tensors[f"{layer}.ssm_a.weight"].to_float32(),
            out_norm=self.norm(f"{layer}.ssm_norm"),
            output=self.linear(f"{layer}.ssm_out"),
            shape=shape,
        )

    def experts(self, i: int, shape: ExpertsConfig) -> ExpertsSpec:
        ffn, plan = f"blk.{i}", self.config.layers[i].ffn
        shared = (
            SharedExpertSpec(
                gate=self.linear(f"{ffn}.ffn_gate_shexp") if self.config.gated else None,
                up=self.linear(f"{ffn}.ffn_up_shexp"),
                down=self.linear(f"{ffn}.ffn_down_shexp"),
                switch=self.optional_linear(f"{ffn}.ffn_gate_inp_shexp"),
            )
            if shape.shared_size
            else None
        )
        spec = ExpertsSpec(
            norm=self.optional_norm(f"{ffn}.ffn_norm") or self.norm(f"{ffn}.attn_norm"),
            router=self.linear(f"{ffn}.ffn_gate_inp"),
            gate=self.linear(f"{ffn}.ffn_gate_exps") if self.config.gated else None,
            up=self.linear(f"{ffn}.ffn_up_exps"),
            down=Linear(
                self.tensors[f"{ffn}.ffn_down_t_exps.weight" if plan else f"{ffn}.ffn_down_exps.weight"],
                self.vector(f"{ffn}.ffn_down_exps.bias"),
            ),
            activation=self.config.activation,
            shape=shape,
            selection_bias=self.vector(f"{ffn}.exp_probs_b.bias"),
            shared=shared,
            plan=plan,
            post_norm=self.optional_norm(f"{ffn}.post_ffw_norm"),
            router_norm=self.no_norm() if shape.early else None,
        )
        return self.with_ffn_beside(i, spec) if self.config.layers[i].beside else spec

    @np.errstate(over="ignore", invalid="ignore")  # damage shows in what is computed
    def with_ffn_beside(self, i: int, spec: ExpertsSpec) -> ExpertsSpec:
        """A mixture with an ordinary FFN beside it, whose norms are numbered 1 and 2."""
        ffn = f"blk.{i}"
        scale = self.tensors[f"{ffn}.ffn_gate_inp_scale.weight"].to_float32()
        root = np.float32(self.config.hidden_size**-0.5)
        return replace(
            spec,
            norm=self.norm(f"{ffn}.pre_ffw_norm_2"),
            post_norm=self.norm(f"{ffn}.post_ffw_norm_2"),
            router_norm=Norm(self.config.norm, self.config.norm_eps, scale * root),
            factors=self.tensors[f"{ffn}.ffn_down_exps_scale.weight"].to_float32(),
            beside=replace(self.ffn(i), post_norm=self.norm(f"{ffn}.post_ffw_norm_1")),
            joined_norm=self.norm(f"{ffn}.post_ffw_norm"),
        )

    def ffn(self, i: int) -> FFNSpec:
        # A parallel layer has no `ffn_norm`: its FFN reads what `attn_norm` gives.
        return FFNSpec(
            norm=self.optional_norm(f"blk.{i}.ffn_norm") or self.norm_before(f"blk.{i}.attn_norm"),
            gate=self.linear(f"blk.{i}.ffn_gate") if self.config.gated else None,
            up=self.linear(f"blk.{i}.ffn_up"),
            down=self.linear(f"blk.{i}.ffn_down"),
            activation=self.config.activation,
            post_norm=self.optional_norm(f"blk.{i}.post_ffw_norm"),
        )

    def neuron_ffn(self, i: int, plan: FFNPlan) -> NeuronFFNSpec:
        ffn = f"blk.{i}"
        low_rank = plan.score in (Score.LOW_RANK, Score.LOW_RANK_RELU)
        return NeuronFFNSpec(
            norm=self.optional_norm(f"{ffn}.ffn_norm") or self.norm_before(f"{ffn}.attn_norm"),
            gate=self.linear(f"{ffn}.ffn_gate") if self.config.gated else None,
            up=self.linear(f"{ffn}.ffn_up"),
            down_t=Linear(self.tensors[f"{ffn}.ffn_down_t.weight"], self.vector(f"{ffn}.ffn_down.bias")),
            activation=self.config.activation,
            plan=plan,
            predictor=(self.linear(f"{ffn}.fc1"), self.linear(f"{ffn}.fc2")) if low_rank else (),
            post_norm=self.optional_norm(f"{ffn}.post_ffw_norm"),
        )

    @np.errstate(over="ignore", invalid="ignore")
    def head(self) -> HeadSpec:
        # Without a matrix of its own, the output is the token embedding's.
        name = "output" if "output.weight" in self.tensors else "token_embd"
        norm = self.norm("output_norm")
        if self.config.logit_scale != 1:  # a factor on a product is one on what is multiplied
            norm = replace(norm, weight=norm.weight * np.float32(self.config.logit_scale))
        return HeadSpec(norm=norm, output=self.linear(name), soft_cap=self.config.logit_soft_cap)

    def linear(self, name: str) -> Linear:
        return Linear(self.tensors[f"{name}.weight"], self.vector(f"{name}.bias"))

    def optional_linear(self, name: str) -> Linear | None:
        return self.linear(name) if f"{name}.weight" in self.tensors else None

    def norm(self, name: str) -> Norm:
        weight = self.tensors[f"{name}.weight"].to_float32()
        # Hidden vectors are kept divided by the factor on what attention and FFN add, which then need none.
        eps = self.config.norm_eps / self.config.residual_scale**2
        return Norm(self.config.norm, eps, weight, self.vector(f"{name}.bias"))

    def norm_before(self, name: str) -> Norm:
        """The norm before attention or FFN, or none."""
        return self.optional_norm(name) or self.no_norm()

    def no_norm(self) -> Norm:
        """Hidden vectors as they are."""
        return Norm(NormKind.NONE, 0.0, np.ones(self.config.hidden_size, np.float32))

    def optional_norm(self, name: str) -> Norm | None:
        return self.norm(name) if f"{name}.weight" in self.tensors else None

    def vector(self, name: str) -> F32 | None:
        """The numbers of a tensor that may be absent."""
        return self.tensors[name].to_float32() if name in self.tensors else None
