"""What the parity tests share: the tokens, the peer's answer, the measure."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from helpers.tiny_models import VOCABULARY

LENGTH = 45  # longer than every tiny model's sliding window and than the contexts that RoPE is scaled from
TOKENS = np.random.default_rng(1).integers(0, VOCABULARY, LENGTH).astype(np.int32)


@dataclass(frozen=True)
class Peer:
    """A model that `transformers` has run: where it is and its logits (LENGTH, VOCABULARY)."""

    model: Any
    path: Path
    logits: NDArray[np.float32]


def run_peer(model: Any) -> NDArray[np.float32]:
    """The logits that `transformers` gives after each of TOKENS."""
    import torch

    config = model.config.to_dict()
    if config.get("num_experts_per_tok") or config.get("top_k_experts") or config.get("moe_k"):
        model.set_experts_implementation("eager")  # grouped products want aligned sizes
    with torch.inference_mode():
        return model(torch.from_numpy(TOKENS[None].astype(np.int64))).logits[0].float().numpy()


def relative_error(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """The largest difference over the largest logit."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def usual_error(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """The median of rows' relative errors: where rounding selects other experts, some rows are far off."""
    return float(np.median([relative_error(*rows) for rows in zip(found, expected, strict=True)]))


def assert_close(found: NDArray[np.float32], expected: NDArray[np.float32], tolerance: float = 1e-4) -> None:
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    error = relative_error(found, expected)
    assert error <= tolerance, f"relative error {error:.2e}"
