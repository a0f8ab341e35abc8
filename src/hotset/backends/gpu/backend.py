"""The GPU backend: builds the parts from weights; see `hotset.backends.building.Backend`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hotset.backends.blocks import dequantise
from hotset.backends.contract import (
    F32,
    FFN,
    AttentionSpec,
    EmbeddingSpec,
    ExpertsSpec,
    FFNSpec,
    HeadSpec,
    LatentSpec,
    LayerInputSpec,
    LayerInputsSpec,
    Mixer,
    NeuronFFNSpec,
    Norm,
    RecurrentSpec,
    StateShape,
)
from hotset.backends.cpu import CpuEmbedding
from hotset.backends.gpu.attention import GpuAttention
from hotset.backends.gpu.device import Gpu
from hotset.backends.gpu.experts import GpuExperts
from hotset.backends.gpu.ffn import GpuFFN, GpuLayerInput, GpuNeuronFFN, GpuNorm
from hotset.backends.gpu.latent import GpuLatentAttention
from hotset.backends.gpu.matrix import build_matrix
from hotset.backends.gpu.predictor import GpuGates, GpuPredictor
from hotset.backends.gpu.recurrent import GpuRecurrent, build_recurrent
from hotset.backends.gpu.slot import GpuSlot
from hotset.backends.gpu.state import GpuSequence, GpuView
from hotset.backends.maths import normalise
from hotset.core.batch import I32, Batch


class GpuEmbedding:
    """Rows are looked up and dequantised on the host, where the table stays."""

    def __init__(self, gpu: Gpu, spec: EmbeddingSpec) -> None:
        self._gpu = gpu
        self._rows = CpuEmbedding(spec)

    def forward(self, tokens: I32, positions: I32) -> Any:
        return self._gpu.upload(self._rows.forward(tokens, positions))


class GpuLayerInputs:
    """Each layer's own embedding of the tokens; rows are looked up as `GpuEmbedding`'s."""

    def __init__(self, gpu: Gpu, spec: LayerInputsSpec) -> None:
        self._gpu, self._spec = gpu, spec
        self._project = build_matrix(gpu, spec.project, *spec.project.weight.shape)
        self._norm = GpuNorm(gpu, spec.norm, spec.norm.weight.size)

    def forward(self, tokens: I32, x: Any) -> Any:
        """Numbers (T, L, P), on the device; see `LayerInputsSpec`."""
        e = self._gpu.empty(len(tokens), self._project.rows)
        self._project.times(x, e)
        e.div_(self._project.cols**0.5)
        by_layer = e.view(-1, self._norm.size)
        self._norm.forward(by_layer, by_layer)
        rows = self._gpu.upload(dequantise(self._spec.rows, tokens))
        e.add_(rows, alpha=self._norm.size**0.5).mul_(0.5**0.5)
        return e.view(len(tokens), self._spec.layers, -1)


class GpuHead:
    """The final norm and the output projection."""

    def __init__(self, gpu: Gpu, spec: HeadSpec) -> None:
        hidden, vocab_size = spec.norm.weight.size, spec.output.weight.shape[0]
        self._gpu = gpu
        self._host_norm = spec.norm
        self._norm = GpuNorm(gpu, spec.norm, hidden)
        self._output = build_matrix(gpu, spec.output, vocab_size, hidden)
        self._soft_cap = spec.soft_cap

    def logits(self, x: Any) -> Any:
        """Logits (T, V) of x (T, D), on the device."""
        logits = self._gpu.scratch("logits", len(x), self._output.rows)
        self._output.times(self._norm.input(x), logits)
        if self._soft_cap:
            logits.div_(self._soft_cap).tanh_().mul_(self._soft_cap)
        return logits

    def forward(self, x: Any) -> F32:
        logits: F32 = self.logits(x).cpu().numpy()
        return logits.copy() if self._gpu.device.type == "cpu" else logits

    def normed(self, x: Any) -> F32:
        return normalise(x.cpu().numpy(), self._host_norm)


class GpuBackend:
    """Parts in a GPU's memory, run by Triton kernels; arrays are torch tensors there.

    `device` is torch's name of it. ``cpu`` stands for Triton's interpreter, for tests: TRITON_INTERPRET=1 has
    to be set before the process starts. Products with quantised matrices take one token's activations as
    8-bit codes, as on the CPU (`hotset.backends.gpu.kernels.quantise`), and those with floats as they are;
    more tokens' are taken as float16, scaled by row. All sums are in float32. Raises
    `HotsetError` without a GPU.
    """

    name = "gpu"

    def __init__(self, device: str = "cuda") -> None:
        self.gpu = Gpu(device)

    def copy(self, x: Any) -> Any:
        return x.clone()

    def rows(self, x: Any, rows: NDArray[np.intp]) -> Any:
        return x[torch.from_numpy(rows).to(x.device)]

    def view(self, batch: Batch) -> GpuView:
        return GpuView.of(self.gpu, batch)

    def embedding(self, spec: EmbeddingSpec) -> GpuEmbedding:
        """Build the token embedding, which stays on the host."""
        return GpuEmbedding(self.gpu, spec)

    def attention(self, spec: AttentionSpec, index: int = 0) -> GpuAttention:
        """Build one layer's attention."""
        return GpuAttention(self.gpu, spec, index)

    def ffn(self, spec: FFNSpec) -> GpuFFN:
        """Build one layer's FFN."""
        return GpuFFN(self.gpu, spec)

    def neuron_ffn(self, spec: NeuronFFNSpec, index: int = 0) -> GpuNeuronFFN:
        """Build one layer's FFN that is stored by neuron; all its neurons are computed."""
        return GpuNeuronFFN(self.gpu, spec)

    def latent_attention(self, spec: LatentSpec, index: int = 0) -> GpuLatentAttention:
        """Build one layer's multi-head latent attention."""
        return GpuLatentAttention(self.gpu, spec, index)

    def recurrent(self, spec: RecurrentSpec, index: int = 0) -> GpuRecurrent:
        """Build one layer with a recurrent state."""
        return build_recurrent(self.gpu, spec, index)

    def experts(self, spec: ExpertsSpec, index: int = 0) -> GpuExperts:
        """Build one layer's mixture of experts; all neurons of those that are selected are computed."""
        return GpuExperts(self.gpu, spec)

    def resident_experts(self, spec: ExpertsSpec, experts: Sequence[int]) -> GpuExperts:
        """Build it with some of its experts."""
        return GpuExperts(self.gpu, spec, experts)

    def chain(self, parts: Sequence[Mixer | FFN], hidden: int) -> None:
        """There is none: parts run one by one."""

    def layer_inputs(self, spec: LayerInputsSpec) -> GpuLayerInputs:
        """Build the tokens' embeddings for each layer, whose table stays on the host."""
        return GpuLayerInputs(self.gpu, spec)

    def layer_input(self, spec: LayerInputSpec) -> GpuLayerInput:
        """Build what one of them adds."""
        return GpuLayerInput(self.gpu, spec)

    def head(self, spec: HeadSpec) -> GpuHead:
        """Build the final norm and the output projection."""
        return GpuHead(self.gpu, spec)

    def slot(self) -> GpuSlot:
        """Room that FFNs take turns in."""
        return GpuSlot(self.gpu)

    def norm(self, norm: Norm) -> GpuNorm:
        """Build a norm of its own."""
        return GpuNorm(self.gpu, norm, norm.weight.size)

    def predictor(self, spec: NeuronFFNSpec) -> GpuPredictor:
        """Build the predictor of an FFN's plan."""
        return GpuPredictor(self.gpu, spec)

    def gates(self, spec: NeuronFFNSpec) -> GpuGates:
        """Build the gates of an FFN that leaves out zeros alone."""
        return GpuGates(self.gpu, spec)

    def sequence(self, shape: StateShape, capacity: int, kv_type: str) -> GpuSequence:
        """Room for `capacity` positions; `kv_type` is ``f16`` or ``f32``."""
        return GpuSequence.empty(self.gpu, shape, capacity, kv_type)

    def synchronize(self) -> None:
        """Wait until everything is done."""
        if self.gpu.device.type != "cpu":
            torch.cuda.synchronize(self.gpu.device)
