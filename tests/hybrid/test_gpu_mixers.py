"""Recurrent layers and latent attention of the GPU backend, in Triton's interpreter, beside the CPU's.

The interpreter runs the same parts as a GPU, one program after the other; the stream is the calling thread.
"""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.parity import assert_close
from helpers.placements import eager_machine
from helpers.random_checkpoint import latent, random_checkpoint, recurrent
from helpers.tiny_families import gemma4_beside, gemma4_shared
from helpers.tiny_models import save

from hotset.backends.cpu import CpuBackend
from hotset.core.batch import Batch, Span
from hotset.core.config import (
    Activation,
    DeltaNetConfig,
    LayerPlacement,
    MambaConfig,
    Placement,
    Recurrent,
    ShortConvConfig,
)
from hotset.core.heads import LatentConfig
from hotset.formats import open_checkpoint
from hotset.formats.checkpoint import Checkpoint
from hotset.hybrid.build import build_hybrid
from hotset.hybrid.device import Device
from hotset.model.build import build_transformer
from hotset.placing.planner import Planner

if not (find_spec("torch") and find_spec("triton")):
    pytest.skip("needs torch and triton", allow_module_level=True)

HIDDEN = 32
NETS: dict[str, Recurrent] = {
    "delta net": DeltaNetConfig(1, 2, 8, 4, tiled=True),
    "Mamba-2": MambaConfig(1, 2, 8, 6, 4),
    "convolution": ShortConvConfig(HIDDEN, 3),
}


@pytest.fixture
def interpreter() -> Device:
    import torch

    from hotset.testing.interpreted import InterpretedDevice

    torch.set_num_threads(1)
    return InterpretedDevice()


def model_with(kind: str) -> Checkpoint:
    """Two layers of the kind, and one with attention, where that is another."""
    options = {"hidden_size": HIDDEN, "ffn_size": 32, "activation": Activation.SILU}
    if kind == "latent":
        shape = LatentConfig(rank=19, rope_dim=6, nope_dim=7, value_dim=5, query_rank=11)
        return latent(random_checkpoint(windows=(None,) * 2, **options), shape)
    net = NETS[kind]
    return recurrent(random_checkpoint(windows=(None,) * 3, **options), (net, net, None))


@pytest.mark.parametrize("kind", [*NETS, "latent"])
def test_sequences_of_two_halves(interpreter: Device, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the CPU alone: a prompt, then steps that are told once for so many rows, of one sequence or two.

    One has several rows in a step, is forked, and goes back to where it was saved.
    """
    recorded: list[object] = []

    def record(step: Callable[[], None]) -> Callable[[], None]:
        recorded.append(step)
        return step

    monkeypatch.setattr(interpreter, "record", record)
    checkpoint = model_with(kind)
    # One layer of the kind on the device, one on the host.
    here = (LayerPlacement(True, 0), *(LayerPlacement(False, 0),) * (checkpoint.config.n_layers - 1))
    whole = build_transformer(checkpoint, CpuBackend(threads=1))
    model = build_hybrid(checkpoint, Placement(here, head=False), interpreter, CpuBackend(threads=1))
    both = [(model, model.sequence(40, "f32")), (whole, whole.sequence(40, "f32"))]
    others = [at.sequence(40, "f32") for at in (model, whole)]
    rng = np.random.default_rng(0)

    def go_on(*counts: int) -> None:
        tokens = rng.integers(0, 53, sum(counts)).astype(np.int32)
        found, expected = (
            at.forward(Batch(tokens, tuple(map(Span, (sequence, other), counts, (True,) * 2, counts))))
            for (at, sequence), other in zip(both, others, strict=True)
        )
        assert_close(found, expected, 1e-3)

    go_on(9)
    for _, sequence in both:
        sequence.save()
    go_on(3, 1)
    go_on(1, 1)
    both = [(at, sequence.fork()) for at, sequence in both]
    go_on(1, 2)
    for _, sequence in both:
        assert sequence.reusable(9) == 9
        sequence.rewind(9)
    go_on(2, 1)
    assert len(recorded) == 2  # for four rows and two
    model.close()


@pytest.mark.parametrize("kind", ["Mamba-2", "latent"])
def test_planned(interpreter: Device, kind: str) -> None:
    """A plan that has room for all puts the mixers on the device."""
    checkpoint = model_with(kind)
    planner = Planner(checkpoint, eager_machine(), context=16, prompt=8)
    placement = planner.plan(planner.everything).placement
    assert all(layer.attention for layer in placement.layers)
    model = build_hybrid(checkpoint, placement, interpreter, CpuBackend(threads=1))
    whole = build_transformer(checkpoint, CpuBackend(threads=1))
    tokens = np.arange(10, dtype=np.int32)
    found, expected = (
        at.forward(Batch.of(at.sequence(16, "f32"), tokens, lossless=True, logits=None))
        for at in (model, whole)
    )
    assert_close(found, expected, 1e-3)
    model.close()


@pytest.mark.parametrize("build", [gemma4_shared, gemma4_beside])
def test_layers_that_differ(interpreter: Device, build: Callable[[], Any], tmp_path: Path) -> None:
    """As the CPU alone: all attention but the second layer's on the device, FFNs there, split, and not."""
    save(build(), tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    layers = [
        LayerPlacement(i != 1, checkpoint.config.units(i) * (i % 3) // 2)
        for i in range(checkpoint.config.n_layers)
    ]
    model = build_hybrid(checkpoint, Placement(tuple(layers), True), interpreter, CpuBackend(threads=1))
    whole = build_transformer(checkpoint, CpuBackend(threads=1))
    found, expected = [], []
    for at, logits in ((model, found), (whole, expected)):
        sequence = at.sequence(12, "f32")
        for tokens in (np.arange(9), np.arange(9, 10), np.arange(10, 12)):
            batch = Batch.of(sequence, tokens.astype(np.int32), lossless=True, logits=None)
            logits.append(at.forward(batch))
    assert_close(np.concatenate(found), np.concatenate(expected), 1e-3)
    model.close()
