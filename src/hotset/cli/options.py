"""Arguments and options that several commands share."""

import re
from fractions import Fraction
from typing import Annotated

import typer

from hotset.core.config import Way
from hotset.core.errors import RequestError

Model = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="A GGUF file, a Hugging Face directory or hf:org/repo[:file]; the demo model if not given.",
        show_default=False,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(min=1, help="Worker threads; one a physical core if not given.", show_default=False),
]
Neurons = Annotated[
    Way | None,
    typer.Option(
        "--ffn",
        help="In layers stored by neuron compute all neurons (dense) or those that are not zero (exact), "
        "instead of what the file's plan says.",
        show_default=False,
    ),
]
Context = Annotated[
    int | None,
    typer.Option(
        min=1, help="Tokens of context; the model's, at most 4096, if not given.", show_default=False
    ),
]
KVType = Annotated[str, typer.Option(help="Type of the KV cache: f16, q8_0 or f32.")]
Vram = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Memory of the GPU to use, such as 8GiB, for the hottest neurons; the CPU computes the rest.",
        show_default=False,
    ),
]
MaxTokens = Annotated[
    int | None,
    typer.Option(
        "-n", "--max-tokens", min=1, help="Longest answer, in tokens; what fits the context if not given."
    ),
]
Temperature = Annotated[float, typer.Option(help="0 always takes the most likely token.")]
TopK = Annotated[int, typer.Option(help="Choose among the K most likely tokens; 0: all.")]
TopP = Annotated[float, typer.Option(help="Choose among the likeliest tokens that add up to P.")]
MinP = Annotated[float, typer.Option(help="Choose among tokens at least P times as likely as the likeliest.")]
RepetitionPenalty = Annotated[float, typer.Option(help="Over 1: repeat less of prompt and answer.")]
PresencePenalty = Annotated[float, typer.Option(help="Over 0: repeat less of the answer.")]
Seed = Annotated[int | None, typer.Option(help="Repeatable draws.", show_default=False)]
AsJSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_UNITS = {"": 1, "b": 1} | {
    prefix + suffix: base**power
    for power, prefix in enumerate("kmgt", start=1)
    for suffix, base in (("ib", 1024), ("i", 1024), ("b", 1000))
}


def vram_bytes(vram: str | None) -> int | None:
    """Bytes that ``--vram`` asks for."""
    return None if vram is None else parse_size(vram)


def parse_size(text: str) -> int:
    """Bytes of a size such as ``8GiB`` (2^30), ``8GB`` (10^9), ``8192MiB``, ``1.5 TiB`` or ``0``.

    Raises `RequestError` for anything else, and for sizes of 2^63 bytes or more.
    """
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)", text.strip(), re.ASCII | re.IGNORECASE)
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise RequestError(f"{text!r} is no size: expected a number and a unit, such as 8GiB, 8GB or 8192MiB")
    size = Fraction(match[1].rstrip(".") or "0") * unit
    if size >= 1 << 63:
        raise RequestError(f"{text!r} is no size of a memory: expected 0 or less than 8 EiB, such as 8GiB")
    return int(size)
