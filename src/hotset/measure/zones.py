"""Where a token's time goes: named zones of the native code, and what is outside it."""

from collections.abc import Callable
from dataclasses import dataclass

from hotset.core.batch import Batch
from hotset.measure.speed import Sizes, room, sample_tokens
from hotset.serve.loaded import Model


@dataclass(frozen=True)
class ZoneTime:
    """One zone's part of a token's time; None where that was not timed. The parts add up to the whole."""

    zone: str
    decode_us: float | None
    """Microseconds of a single token, the mean."""
    prefill_us: float | None
    """Microseconds of one token of a prompt."""


def measure_zones(
    model: Model, sizes: Sizes, *, progress: Callable[[int, int], None] | None = None
) -> list[ZoneTime]:
    """Time the zones of a prompt and of single tokens, `sizes.repeats` times each, after a first round.

    A zone's time is the calling thread's: it begins the work, takes part in it and waits for its end.
    """
    most = room(model.config.context_length)
    opening = most.prompt_tokens - most.tokens
    n_prefill, n_decode = min(sizes.prompt_tokens, most.prompt_tokens), min(sizes.tokens, most.tokens)
    sequence = model.sequence(max(n_prefill, opening + n_decode))
    ids = sample_tokens(model, sequence.capacity)
    backend = model.backend

    def prefill() -> None:
        sequence.rewind(0)
        model.transformer.forward(Batch.of(sequence, ids[:n_prefill], lossless=True))

    def decode() -> None:
        for i in range(opening, opening + n_decode):
            model.transformer.forward(Batch.of(sequence, ids[i : i + 1]))

    def open_sequence() -> None:
        sequence.rewind(0)
        model.transformer.forward(Batch.of(sequence, ids[:opening], lossless=True))

    prompts: dict[str, float] = {}
    singles: dict[str, float] = {}
    for repeat in range(sizes.repeats + 1):
        for times, count, before, run in (
            (prompts, n_prefill, None, prefill),
            (singles, n_decode, open_sequence, decode),
        ):
            if not count:
                continue
            if before:
                before()
            with backend.zones() as zones:
                run()
            if repeat == 0:  # warms up
                continue
            for name, seconds in zones.items():
                times[name] = times.get(name, 0.0) + seconds / (count * sizes.repeats)
        if progress:
            progress(repeat, sizes.repeats)
    return [
        ZoneTime(
            name,
            1e6 * singles.get(name, 0.0) if n_decode else None,
            1e6 * prompts.get(name, 0.0) if n_prefill else None,
        )
        for name in dict.fromkeys([*singles, *prompts])
        if singles.get(name) or prompts.get(name)
    ]
