"""Builds a `Transformer` from a checkpoint's tensors.

No architecture is named here: the configuration and the presence of tensors say everything.
"""

from collections.abc import Callable

from hotset.backends.base import (
    F32,
    AttentionSpec,
    Backend,
    EmbeddingSpec,
    FFNSpec,
    HeadSpec,
    Linear,
    Norm,
)
from hotset.errors import CheckpointError
from hotset.formats.checkpoint import Checkpoint
from hotset.formats.tensor import Tensor
from hotset.model.transformer import Layer, Transformer


def build_transformer(
    checkpoint: Checkpoint, backend: Backend, progress: Callable[[int, int], None] | None = None
) -> Transformer:
    """Build every part of the model with `backend`; `progress(done, total)` is told after each of them.

    Raises `CheckpointError` for a tensor that is missing, that has another shape than the configuration says,
    or that no part of the decoder reads.
    """
    weights = _Weights(checkpoint)
    c = checkpoint.config
    total = c.n_layers + 2

    def done(parts: int) -> None:
        if progress:
            progress(parts, total)

    embedding = backend.embedding(weights.embedding())
    done(1)
    layers = []
    for i in range(c.n_layers):
        layers.append(Layer(backend.attention(weights.attention(i)), backend.ffn(weights.ffn(i))))
        done(i + 2)
    head = backend.head(weights.head())
    done(total)
    weights.refuse_unread()
    return Transformer(c, backend, embedding, layers, head)


class _Weights:
    """Takes a checkpoint's tensors by name, checks their shapes and puts them into the specs of parts."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.path = checkpoint.path
        self.config = checkpoint.config
        self.tensors = checkpoint.tensors
        self.unread = set(checkpoint.tensors)

    def embedding(self) -> EmbeddingSpec:
        c = self.config
        positions = None
        if "position_embd.weight" in self.tensors:
            positions = self.tensor(
                "position_embd.weight", c.context_length + c.position_offset, c.hidden_size
            )
        tokens = self.tensor("token_embd.weight", c.vocab_size, c.hidden_size)
        return EmbeddingSpec(tokens, c.embedding_scale, positions, c.position_offset)

    def attention(self, i: int) -> AttentionSpec:
        c = self.config
        q_size, kv_size = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
        # Where a parallel layer has two norms, `attn_norm_2` is the attention's and `attn_norm` the FFN's.
        own_norm = self.optional_norm(f"blk.{i}.attn_norm_2", c.hidden_size)
        return AttentionSpec(
            norm=own_norm or self.norm(f"blk.{i}.attn_norm", c.hidden_size),
            q=self.linear(f"blk.{i}.attn_q", q_size, c.hidden_size),
            k=self.linear(f"blk.{i}.attn_k", kv_size, c.hidden_size),
            v=self.linear(f"blk.{i}.attn_v", kv_size, c.hidden_size),
            output=self.linear(f"blk.{i}.attn_output", c.hidden_size, q_size),
            n_heads=c.n_heads,
            n_kv_heads=c.n_kv_heads,
            head_dim=c.head_dim,
            scale=c.attention_scale or c.head_dim**-0.5,
            rope=c.layers[i].rope,
            window=c.layers[i].window,
            q_norm=self.optional_norm(f"blk.{i}.attn_q_norm", c.head_dim),
            k_norm=self.optional_norm(f"blk.{i}.attn_k_norm", c.head_dim),
            post_norm=self.optional_norm(f"blk.{i}.post_attention_norm", c.hidden_size),
        )

    def ffn(self, i: int) -> FFNSpec:
        c = self.config
        # A parallel layer may have one norm for both of its parts.
        own_norm = self.optional_norm(f"blk.{i}.ffn_norm", c.hidden_size)
        return FFNSpec(
            norm=own_norm or self.norm(f"blk.{i}.attn_norm", c.hidden_size),
            gate=self.linear(f"blk.{i}.ffn_gate", c.ffn_size, c.hidden_size) if c.gated else None,
            up=self.linear(f"blk.{i}.ffn_up", c.ffn_size, c.hidden_size),
            down=self.linear(f"blk.{i}.ffn_down", c.hidden_size, c.ffn_size),
            activation=c.activation,
            post_norm=self.optional_norm(f"blk.{i}.post_ffw_norm", c.hidden_size),
        )

    def head(self) -> HeadSpec:
        c = self.config
        # Without a matrix of its own the output is tied to the embedding.
        name = "output" if "output.weight" in self.tensors else "token_embd"
        return HeadSpec(
            self.norm("output_norm", c.hidden_size), self.linear(name, c.vocab_size, c.hidden_size)
        )

    def linear(self, name: str, rows: int, columns: int) -> Linear:
        return Linear(
            self.tensor(f"{name}.weight", rows, columns), self.optional_vector(f"{name}.bias", rows)
        )

    def norm(self, name: str, size: int) -> Norm:
        weight = self.tensor(f"{name}.weight", size).to_float32()
        return Norm(
            self.config.norm, self.config.norm_eps, weight, self.optional_vector(f"{name}.bias", size)
        )

    def optional_norm(self, name: str, size: int) -> Norm | None:
        return self.norm(name, size) if f"{name}.weight" in self.tensors else None

    def optional_vector(self, name: str, size: int) -> F32 | None:
        return self.tensor(name, size).to_float32() if name in self.tensors else None

    def tensor(self, name: str, *shape: int) -> Tensor:
        """The tensor of this name, which must have this shape."""
        if name not in self.tensors:
            raise CheckpointError(
                f"{self.path}: no tensor {name}, which a {self.config.architecture} model needs; "
                "the file is incomplete or of a variant that Hotset does not run"
            )
        found = self.tensors[name]
        if found.shape != shape:
            raise CheckpointError(
                f"{self.path}: {name} has shape {list(found.shape)}, expected {list(shape)} from the model's "
                "configuration; the file is damaged or of a variant that Hotset does not run"
            )
        self.unread.discard(name)
        return found

    def refuse_unread(self) -> None:
        """Refuse a model with weights that nothing reads: its output would be wrong and nobody would know."""
        if self.unread:
            names = sorted(self.unread)
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointError(
                f"{self.path}: tensor {names[0]}{more} has no place in a {self.config.architecture} model as "
                "Hotset knows it; convert the model without it or use a supported variant"
            )
