"""Sizes of published models, for `synthetic.py`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """A published model's sizes; names as in GGUF."""

    architecture: str
    vocab: int
    context: int
    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    rope_base: float = 10000.0
    epsilon: float = 1e-5
    tied: bool = False
    key_length: int = 0
    """Numbers in one head, if these do not add up to the hidden size."""
    delta_heads: tuple[int, int] | None = None
    """Key and value heads of 128 numbers of the layers that are gated delta nets: all but every fourth."""
    experts: int = 0
    """Each layer's, of `ffn` neurons; 0: it is no mixture."""
    experts_used: int = 0
    shared: int = 0
    """Neurons of the expert that every row uses; 0: there is none."""
    window: int = 0
    """Positions that every second layer's attention reaches back; 0: all of them, in all layers."""

    @property
    def head_dim(self) -> int:
        """Numbers in one head."""
        return self.key_length or self.hidden // self.heads

    def recurrent(self, layer: int) -> bool:
        """Whether a layer is a gated delta net."""
        return self.delta_heads is not None and (layer + 1) % 4 != 0


SHAPES = {
    "llama-2-7b": Shape("llama", 32000, 4096, 4096, 11008, 32, 32, 32),
    "llama-2-13b": Shape("llama", 32000, 4096, 5120, 13824, 40, 40, 40),
    "llama-3-8b": Shape("llama", 128256, 8192, 4096, 14336, 32, 32, 8, rope_base=500000.0),
    "mistral-7b": Shape("llama", 32000, 32768, 4096, 14336, 32, 32, 8),
    "smollm2-135m": Shape("llama", 49152, 8192, 576, 1536, 30, 9, 3, rope_base=100000.0, tied=True),
    "qwen2.5-1.5b": Shape(
        "qwen2", 151936, 32768, 1536, 8960, 28, 12, 2, rope_base=1000000.0, epsilon=1e-6, tied=True
    ),
    "qwen3.5-4b": Shape(
        *("qwen35", 248320, 262144, 2560, 9216, 32, 16, 4),
        rope_base=1e7,
        epsilon=1e-6,
        tied=True,
        key_length=256,
        delta_heads=(16, 32),
    ),
    "qwen3-30b-a3b": Shape(
        *("qwen3moe", 151936, 40960, 2048, 768, 48, 32, 4),
        rope_base=1e6,
        epsilon=1e-6,
        key_length=128,
        experts=128,
        experts_used=8,
    ),
    "qwen3.6-35b-a3b": Shape(
        *("qwen35moe", 248320, 262144, 2048, 512, 40, 16, 2),
        rope_base=1e7,
        epsilon=1e-6,
        key_length=256,
        delta_heads=(16, 32),
        experts=256,
        experts_used=8,
        shared=512,
    ),
    "gpt-oss-20b": Shape(
        *("gpt-oss", 201088, 131072, 2880, 2880, 24, 64, 8),
        rope_base=150000.0,
        key_length=64,
        experts=32,
        experts_used=4,
        window=128,
    ),
    "opt-6.7b": Shape("opt", 50272, 2048, 4096, 16384, 32, 32, 32, tied=True),
    # What llama.cpp runs in place of OPT, which it does not know: the same matrices, without a gate too.
    "opt-6.7b-as-falcon": Shape("falcon", 50272, 2048, 4096, 16384, 32, 32, 32, tied=True),
    "falcon-7b": Shape("falcon", 65024, 2048, 4544, 18176, 32, 71, 1, tied=True),
    "falcon-40b": Shape("falcon", 65024, 2048, 8192, 32768, 60, 128, 8),
}
