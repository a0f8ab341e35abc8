"""Which parts of a model lie on the GPU, within a budget of its memory, and how fast that is predicted to be.

The tables of `hotset.placing.costs` go into the solvers of `hotset.placing.solve`; a `Plan` is what comes
out, in bytes and milliseconds. docs/how/plan.md explains how.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from hotset.core.batch import BLOCK_ROWS
from hotset.core.config import LayerPlacement, Placement
from hotset.core.errors import RequestError
from hotset.formats.checkpoint import Checkpoint
from hotset.hybrid.streaming import PIECE_BYTES
from hotset.model.transformer import SLICE
from hotset.placing.costs import (
    DEVICE,
    HOST,
    Options,
    gpu_of,
    handshake_ms,
    head_options,
    layer_options,
)
from hotset.placing.machine import MachineProfile
from hotset.placing.part_times import ratio
from hotset.placing.prefill import ColdPrefill, prefill_ms
from hotset.placing.sizes import ModelParts, model_parts
from hotset.placing.solve import Problem, Solution, tabulated

_FEW_ROWS = 8
"""So many rows at once are those of decoding; prompts have more."""


@dataclass(frozen=True)
class LayerUse:
    """One layer of a plan: bytes on the GPU by what they are, and the time it takes."""

    placement: LayerPlacement
    attention_bytes: int
    kv_bytes: int
    neuron_bytes: int
    predictor_bytes: int
    """Of the predictor, or of the gates of cold neurons."""
    host_bytes: int
    """Of weights and KV cache in main memory."""
    ms: float


@dataclass(frozen=True)
class PartTimes:
    """Milliseconds of one decoded token, by what they are spent on."""

    attention: float
    ffn: float
    handshakes: float
    """And hidden vectors that move between neighbours with different homes."""
    head: float


@dataclass(frozen=True)
class Plan:
    """A placement with what it takes and what it is predicted to give. All times and speeds are predicted."""

    placement: Placement
    budget: int
    """Bytes of the GPU's memory that were allowed."""
    context: int
    """Tokens that the KV cache has room for."""
    prompt: int
    """Tokens read before the token whose time is predicted."""
    layers: tuple[LayerUse, ...]
    head_bytes: int
    """On the GPU."""
    host_head_bytes: int
    """In main memory."""
    working_bytes: int
    """Buffers on the GPU; 0 where nothing lies there."""
    times: PartTimes
    ms: float
    """Of one decoded token."""
    bound_ms: float
    """No placement within the budget is predicted to be faster than this."""
    cold_prefill: ColdPrefill
    """What becomes of cold neurons while such a prompt is read."""
    stream_from: int | None
    """Prompts of at least so many tokens are read faster with cold neurons streamed; None: never."""
    first_token_ms: float
    """From the prompt to the first token."""

    @property
    def device_bytes(self) -> int:
        """On the GPU, all in all: at most the budget."""
        layers = sum(u.attention_bytes + u.kv_bytes + u.neuron_bytes + u.predictor_bytes for u in self.layers)
        return layers + self.head_bytes + self.working_bytes

    @property
    def host_bytes(self) -> int:
        """In main memory: weights and KV cache, but for the token embedding, which stays in the file."""
        return sum(use.host_bytes for use in self.layers) + self.host_head_bytes

    @property
    def tokens_per_second(self) -> float:
        """Decoded."""
        return 1e3 / self.ms


class Planner:
    """Plans one model on one machine, for any budget.

    `context` is the tokens that the KV cache has room for, of all `sequences` together, `prompt` those read
    before the token that is timed, `kv_number_bytes` those of a number in the cache (2: F16); `frequency` is
    as in `hotset.placing.sizes.model_parts`, `sides` says whose times of parts are meant, as in
    `MachineProfile.times_of`. Raises `HotsetError` for a machine without a GPU and for a model whose neurons'
    frequencies are not known.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        machine: MachineProfile,
        *,
        context: int,
        prompt: int,
        frequency: Sequence[NDArray[np.floating]] | NDArray[np.floating] | None = None,
        kv_number_bytes: float = 2.0,
        sequences: int = 1,
        sides: str | None = None,
    ) -> None:
        if not 1 <= prompt <= context:
            raise RequestError(
                f"prompt is {prompt} tokens: expected 1 to {context}, the context (--prompt, --context)"
            )
        self.machine, self.context, self.prompt, self.sequences = machine, context, prompt, sequences
        self.parts = model_parts(checkpoint, frequency, kv_number_bytes)
        times, hidden = machine.times_of(sides), self.parts.config.hidden_size
        items = [
            layer_options(
                layer,
                machine,
                context=context,
                filled=prompt,
                sequences=sequences,
                times=times,
                hidden=hidden,
            )
            for layer in self.parts.layers
        ]
        # Cold experts are not streamed yet.
        self._ways = [ColdPrefill.CPU] if self.parts.config.mixture else list(ColdPrefill)
        factor = ratio(times, self.parts.step_name)
        items.append(head_options(self.parts, machine, times))
        self._items: list[Options] = [item.scaled(factor) for item in items]
        self._needed = [item.needed() for item in self._items]
        self.problem = Problem(self._needed, factor * handshake_ms(gpu_of(machine), times, hidden) / 2)
        self.working_bytes = working_bytes(self.parts)

    @property
    def everything(self) -> int:
        """The budget that fits the whole model, its KV cache and the working buffers."""
        return self.working_bytes + self.problem.most_bytes

    def plan(self, budget: int) -> Plan:
        """The plan for a budget of so many bytes. A larger budget is never predicted to be slower."""
        if budget < 0:
            raise RequestError(f"budget is {budget} bytes: expected 0 or more (--vram)")
        room = max(0, budget - self.working_bytes)
        solutions = [tabulated(problem, room) for problem in self._problems()]
        best = min(solutions, key=lambda solution: solution.ms)
        bound = min(solution.bound for solution in solutions)
        return self.described(replace(best, bound=bound), budget)

    def _problems(self) -> Iterator[Problem]:
        """The problem or, where layers share keys and values, one for each way to give those one home."""
        together: defaultdict[int, set[int]] = defaultdict(set)
        for i, layer in enumerate(self.parts.config.layers):
            if layer.kv_from is not None:
                together[layer.kv_from] |= {layer.kv_from, i}
        if not together:
            yield self.problem
            return
        for homes in product((HOST, DEVICE), repeat=len(together)):
            items = list(self._needed)
            for home, group in zip(homes, together.values(), strict=True):
                for i in group:
                    items[i] = items[i].at_home(home)
            yield Problem(items, self.problem.switch_ms)

    def predicted(self, placement: Placement) -> Plan:
        """The plan that has this placement, for comparison; its hot counts must be multiples of a slab."""
        homes = [DEVICE if layer.attention else HOST for layer in placement.layers]
        homes.append(DEVICE if placement.head else HOST)
        options = [
            item.of(layer.hot, gates=layer.gates)
            for item, layer in zip(self._items, placement.layers, strict=False)
        ]
        options.append(0)  # the head's
        chosen = list(zip(self._items, homes, options, strict=True))
        moves = sum(a != b for a, b in zip([HOST, *homes], homes, strict=False))
        ms = sum(float(item.ms[home, k]) for item, home, k in chosen) + moves * self.problem.switch_ms
        nbytes = sum(int(item.bytes[home, k]) for item, home, k in chosen)
        solution = Solution(tuple(homes), tuple(options), nbytes, ms, ms)
        return self._described(self._items, solution, nbytes + self.working_bytes)

    def described(self, solution: Solution, budget: int) -> Plan:
        """A solution of `problem` as a plan."""
        return self._described(self._needed, solution, budget)

    def _described(self, items: Sequence[Options], solution: Solution, budget: int) -> Plan:
        count = len(self.parts.layers)
        uses = [self._use(items[i], i, solution.homes[i], solution.options[i]) for i in range(count)]
        placement = Placement(tuple(use.placement for use in uses), head=solution.homes[-1] == DEVICE)
        pairs = list(zip(items[:-1], solution.homes, solution.options, strict=False))
        attention = sum(float(item.attention_ms[home]) for item, home, _ in pairs)
        moves = sum(a != b for a, b in zip([HOST, *solution.homes], solution.homes, strict=False))
        handshakes = sum(float(item.handshake_ms[home, k]) for item, home, k in pairs)
        head = float(items[-1].ms[solution.homes[-1], 0])
        layers_ms = sum(use.ms for use in uses)
        times = PartTimes(
            attention=attention,
            ffn=layers_ms - attention - handshakes,
            handshakes=handshakes + moves * self.problem.switch_ms,
            head=head,
        )
        reading = {
            way: prefill_ms(self.parts, placement, self.machine, self.prompt, way) for way in self._ways
        }
        uses_gpu = solution.bytes > 0  # otherwise there are no buffers to stream to
        cold_prefill = min(reading, key=lambda way: reading[way]) if uses_gpu else ColdPrefill.CPU
        return Plan(
            placement=placement,
            budget=budget,
            context=self.context,
            prompt=self.prompt,
            layers=tuple(uses),
            head_bytes=self.parts.device_head_bytes * placement.head,
            host_head_bytes=self.parts.head_bytes * (not placement.head),
            working_bytes=self.working_bytes if uses_gpu else 0,
            times=times,
            ms=solution.ms,
            bound_ms=solution.bound,
            cold_prefill=cold_prefill,
            stream_from=self._stream_from(placement) if uses_gpu else None,
            first_token_ms=reading[cold_prefill] + head,
        )

    def _stream_from(self, placement: Placement) -> int | None:
        """The processor's time grows with each token; what streaming takes is the same for a whole slice.

        Few rows are decoded ones, for which the processor may leave out neurons; streaming cannot.
        """

        def streams(tokens: int) -> bool:
            by_way = [
                prefill_ms(self.parts, placement, self.machine, tokens, way)
                for way in (ColdPrefill.STREAM, ColdPrefill.CPU)
            ]
            return by_way[0] < by_way[1]

        least, most = _FEW_ROWS + 1, SLICE
        if ColdPrefill.STREAM not in self._ways or not streams(most):
            return None
        while least < most:
            middle = (least + most) // 2
            least, most = (least, middle) if streams(middle) else (middle + 1, most)
        return least

    def _use(self, item: Options, number: int, home: int, option: int) -> LayerUse:
        layer = self.parts.layers[number]
        hot, split = int(item.hot[option]), 0 < item.hot[option] < layer.ffn.size
        attention = layer.attention_bytes
        kv = layer.kept_bytes(self.context, self.sequences)
        gates = bool(item.gates[option])
        predictor = int(layer.ffn.predictor_of(item.hot[option])) if split else 0
        predictor += math.ceil((layer.ffn.size - hot) * layer.ffn.device_scanned) if gates else 0
        neurons = int(item.bytes[HOST, option]) - predictor
        ffn = round(layer.ffn.size * layer.ffn.unit_bytes) + layer.ffn.fixed_bytes
        on_device = home == DEVICE
        on_host = ffn - round(hot * layer.ffn.unit_bytes) if hot < layer.ffn.size else 0
        return LayerUse(
            placement=LayerPlacement(
                on_device, hot, layer.ffn.experts[:hot] if layer.ffn.experts else None, gates
            ),
            attention_bytes=layer.device_attention_bytes if on_device else 0,
            kv_bytes=kv if on_device else 0,
            neuron_bytes=neurons,
            predictor_bytes=predictor,
            host_bytes=on_host
            + (layer.ffn.predictor_bytes if hot == 0 else 0)
            + (0 if on_device else attention + kv),
            ms=float(item.ms[home, option]),
        )


def working_bytes(parts: ModelParts) -> int:
    """The device's buffers, estimated: activations of a slice of a prompt, logits, and streamed cold weights.

    Of a slice, in float32, the hidden vectors are there twice. Attention and FFNs take `BLOCK_ROWS` of its
    rows at a time: their norm, and queries, keys, values twice with what attention gives, which has two sums
    a row on the way; or a recurrent layer's projections, convolution and values; or gate and up and, in
    halves, one of them. Mixtures take all rows. A piece of cold weights is in two slots; to lay out one of
    its matrices, a third of it, takes five times its size, itself and four more, as predicted from its
    intermediate tensors. The slots grow with what the device's layout adds to a type.
    """
    config = parts.config
    hidden, of_layers = config.hidden_size, [config.heads(i) for i in range(config.n_layers)]
    attention = max((11 * h.n_heads // 2 + 2 * h.n_kv_heads) * h.head_dim for h in of_layers)
    recurrent = [4 * x.recurrent.channels for x in config.layers if x.recurrent]
    ffn = max(5 * config.neurons(i) // 2 for i in range(config.n_layers))
    mixtures = [e.used * e.size + e.shared_size for e in (x.experts for x in config.layers) if e]
    mixture = hidden + 2 * max(mixtures) if mixtures else 0
    numbers = SLICE * 2 * hidden + config.vocab_size
    numbers += max(BLOCK_ROWS * (hidden + max(attention, ffn, *recurrent)), SLICE * mixture)
    ffns = [layer.ffn for layer in parts.layers]
    largest = max(math.ceil(ffn.size * ffn.file_unit_bytes) for ffn in ffns)
    units = [(ffn.device_unit_bytes, ffn.file_unit_bytes) for ffn in ffns if ffn.size]
    laid_out = max([1.0, *(there / here for there, here in units)])
    return 4 * numbers + int((2 * 3 * laid_out + 5) * min(largest, PIECE_BYTES)) // 3
