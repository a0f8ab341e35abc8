"""Arguments and options that several commands share."""

import functools
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hotset.cli.text import read_text
from hotset.core.config import Way
from hotset.core.errors import RequestError
from hotset.core.limits import available_cores

if TYPE_CHECKING:
    from hotset.serve.constraint import Constraint

Model = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="A GGUF file, a Hugging Face directory, hf:org/repo:Q4_K_M or a hub address; "
        "the demo model if not given.",
        show_default=False,
    ),
]
Override = Annotated[
    list[str] | None,
    typer.Option(
        "--override",
        metavar="KEY=VALUE",
        help="Put a value in place of what the model's file says, such as tokenizer.ggml.pre=falcon "
        "(config.json's keys for a directory); may be repeated.",
        show_default=False,
    ),
]


def _bound_others(threads: int | None) -> int | None:
    """Bound the threads of NumPy's and torch's libraries too, which read this when they are imported."""
    if not {"numpy", "torch"} & sys.modules.keys():
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            if threads or name not in os.environ:
                os.environ[name] = str(threads or available_cores())
    return threads


Threads = Annotated[
    int | None,
    typer.Option(
        "-t",
        "--threads",
        min=1,
        help="Worker threads; one a physical core if not given.",
        show_default=False,
        callback=_bound_others,
    ),
]
Neurons = Annotated[
    Way | None,
    typer.Option(
        "--ffn",
        metavar="dense|exact",
        case_sensitive=False,
        help="In layers stored by neuron compute all neurons (dense) or those that are not zero (exact), "
        "instead of what the file's plan says.",
        show_default=False,
    ),
]
Context = Annotated[
    int | None,
    typer.Option(
        "-c",
        "--context",
        min=0,
        help="Tokens of context; 0: what the model was trained for; if not given that, at most 4096.",
        show_default=False,
    ),
]
Speculate = Annotated[
    bool,
    typer.Option(
        "--speculate/--no-speculate",
        help="Compute several tokens at once where the text repeats itself; answers are the same.",
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
Ram = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Memory for the experts of a mixture, such as 6GiB; those used least are read from the file.",
        show_default=False,
    ),
]


def _limit(tokens: int | None) -> int | None:
    """-1, as for llama.cpp, is no limit."""
    if tokens == -1:
        return None
    if tokens is not None and tokens < 1:
        raise typer.BadParameter(f"{tokens} tokens: expected 1 or more, or -1 for what fits the context")
    return tokens


def _seed(seed: int | None) -> int | None:
    """-1, as for llama.cpp, is another seed each time."""
    return None if seed == -1 else seed


MaxTokens = Annotated[
    int | None,
    typer.Option(
        "-n",
        "--max-tokens",
        callback=_limit,
        help="Longest answer, in tokens; -1, or if not given: what fits the context.",
        show_default=False,
    ),
]
System = Annotated[
    str | None, typer.Option(help="What the model is told before the conversation.", show_default=False)
]
TopK = Annotated[int, typer.Option(help="Choose among the K most likely tokens; 0: all.")]
TopP = Annotated[float, typer.Option(help="Choose among the likeliest tokens that add up to P.")]
MinP = Annotated[float, typer.Option(help="Choose among tokens at least P times as likely as the likeliest.")]
RepetitionPenalty = Annotated[float, typer.Option(help="Over 1: repeat less of prompt and answer.")]
PresencePenalty = Annotated[float, typer.Option(help="Over 0: repeat less of the answer.")]
Seed = Annotated[
    int | None,
    typer.Option(callback=_seed, help="Repeatable draws; -1: others each time.", show_default=False),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(help="End before this text; may be repeated.", show_default=False),
]
Tools = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.json", help="Tools the model may call: a JSON list, as for OpenAI.", show_default=False
    ),
]
Think = Annotated[
    bool | None,
    typer.Option(
        "--think/--no-think",
        help="Turn the model's reasoning on or off, where its chat template can (gpt-oss: more or less).",
        show_default=False,
    ),
]
TemplateVariables = Annotated[
    list[str] | None,
    typer.Option(
        "--template-var",
        metavar="KEY=VALUE",
        help="Set a variable of the chat template, to JSON or a text; may be repeated.",
        show_default=False,
    ),
]
Schema = Annotated[
    Path | None,
    typer.Option(
        "--json-schema",
        metavar="FILE.json",
        help=r"Answer in JSON by the schema in a file (needs hotset\[serve]).",
        show_default=False,
    ),
]
Grammar = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help=r"Answer by the grammar in a file, GBNF or llguidance's Lark (needs hotset\[serve]).",
        show_default=False,
    ),
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="The answer and errors, nothing else.")]
Verbose = Annotated[
    bool, typer.Option("-v", "--verbose", help="Also say how the model was loaded and why an answer ended.")
]
AsJSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@dataclass(frozen=True)
class Answering:
    """The options of commands that answer in the terminal: how the model answers, and how it is loaded."""

    system: System = None
    max_tokens: MaxTokens = None
    top_k: TopK = 0
    min_p: MinP = 0.0
    repetition_penalty: RepetitionPenalty = 1.0
    presence_penalty: PresencePenalty = 0.0
    seed: Seed = None
    stop: Stop = None
    tools: Tools = None
    think: Think = None
    template_var: TemplateVariables = None
    threads: Threads = None
    context: Context = None
    kv_type: KVType = "f16"
    ffn: Neurons = None
    speculate: Speculate = True
    vram: Vram = None
    ram: Ram = None
    quiet: Quiet = False
    verbose: Verbose = False
    override: Override = None


def temperature(default: str) -> Any:
    """The option for the temperature, whose default depends on the command."""
    return typer.Option(
        "--temperature",
        "--temp",
        help=f"0 always takes the most likely token; {default} if not given.",
        show_default=False,
    )


def with_options_apart(command: Callable[..., None]) -> Callable[..., None]:
    """The command, an option for each field of its parameters that are dataclasses."""
    signature = inspect.signature(command, eval_str=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, Any] = {}
    for parameter in signature.parameters.values():
        if is_dataclass(parameter.annotation):
            groups[parameter.name] = parameter.annotation
            parameters += [
                inspect.Parameter(
                    f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type
                )
                for f in fields(parameter.annotation)
            ]
        else:
            parameters.append(parameter)

    @functools.wraps(command)
    def call(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        command(**given)

    return _with_parameters(call, signature.replace(parameters=parameters))


def with_model_option(command: Callable[..., None]) -> Callable[..., None]:
    """The command, for which ``-m NAME`` puts NAME in front of the other arguments, as MODEL."""
    signature = inspect.signature(command, eval_str=True)
    parameters = list(signature.parameters.values())
    arguments = [p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    if "model" not in arguments:
        return command

    @functools.wraps(command)
    def call(*, model_option: str | None = None, **given: Any) -> None:
        if model_option is not None:
            values = [model_option, *(given[name] for name in arguments)]
            if values.pop() is not None:
                raise RequestError(f"{given[arguments[-1]]}: one argument too many beside -m {model_option}")
            given |= dict(zip(arguments, values, strict=True))
        command(**given)

    annotation = Annotated[
        str | None, typer.Option("-m", "--model", metavar="MODEL", help="The same as MODEL.")
    ]
    added = inspect.Parameter(
        "model_option", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )
    return _with_parameters(call, signature.replace(parameters=[*parameters, added]))


def _with_parameters(call: Callable[..., None], signature: inspect.Signature) -> Callable[..., None]:
    """The function, which typer takes to have these parameters."""
    call.__signature__ = signature  # type: ignore[attr-defined]
    call.__annotations__ = {name: p.annotation for name, p in signature.parameters.items()}
    return call


def read_tools(path: Path | None) -> list[Any] | None:
    """The tools in a JSON file: a list of objects, each of which has a ``function`` or is one."""
    if path is None:
        return None
    try:
        tools = json.loads(read_text(path))
    except ValueError as error:
        raise RequestError(f"{path} is no JSON ({error}): expected a list of tools (--tools)") from None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RequestError(f"{path}: expected a JSON list of tools, each an object (--tools)")
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]


def read_constraint(schema: Path | None, grammar: Path | None, *, reasoning: bool) -> "Constraint | None":
    """What ``--json-schema`` or ``--grammar`` ask for; None: nothing."""
    if schema is None and grammar is None:
        return None
    if schema is not None and grammar is not None:
        raise RequestError("--json-schema and --grammar: expected one of them")
    from hotset.serve.constraint import Constraint

    if grammar is not None:
        return Constraint.written(read_text(grammar), reasoning=reasoning)
    assert schema is not None
    try:
        value = json.loads(read_text(schema))
    except ValueError as error:
        raise RequestError(f"{schema} is no JSON ({error}): expected a schema (--json-schema)") from None
    return Constraint.json_schema(value, reasoning=reasoning)


def template_variables(pairs: Sequence[str] | None) -> dict[str, Any]:
    """What ``--template-var`` sets: a variable that is no JSON is a text."""
    variables: dict[str, Any] = {}
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier() or name in ("messages", "tools"):
            raise RequestError(f"{pair!r}: expected KEY=VALUE, such as reasoning_effort=low (--template-var)")
        try:
            variables[name] = json.loads(value)
        except ValueError:
            variables[name] = value
    return variables


_UNITS = {"": 1, "b": 1} | {
    prefix + suffix: base**power
    for power, prefix in enumerate("kmgt", start=1)
    for suffix, base in (("ib", 1024), ("i", 1024), ("b", 1000))
}


_TRUTH = {"true": True, "false": False}
_TYPES: dict[str, Callable[[str], str | int | float | bool]] = {
    "int": int,
    "float": float,
    "bool": lambda text: _TRUTH[text.lower()],
    "str": str,
}


def overrides(override: Sequence[str] | None) -> dict[str, str | int | float | bool]:
    """The values of ``--override KEY=VALUE``: integers, numbers, true, false, or else text.

    A type may be named, as in ``KEY=str:7``. Raises `RequestError` for what has another form.
    """
    values: dict[str, str | int | float | bool] = {}
    for text in override or ():
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise RequestError(f"{text!r}: expected KEY=VALUE (--override)")
        named, colon, rest = value.partition(":")
        if not colon or named not in _TYPES:
            named, rest = _type_name(value), value
        try:
            values[key] = _TYPES[named](rest)
        except (ValueError, KeyError):
            raise RequestError(f"{text!r}: expected {named}, found {rest!r} (--override)") from None
    return values


def _type_name(value: str) -> str:
    """The type that a value without one is taken for."""
    if value.lower() in _TRUTH:
        return "bool"
    if re.fullmatch(r"[+-]?\d+", value, re.ASCII):
        return "int"
    number = re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", value, re.ASCII | re.IGNORECASE)
    return "float" if number else "str"


def vram_bytes(vram: str | None) -> int | None:
    """Bytes that ``--vram`` asks for."""
    return None if vram is None else parse_size(vram)


def ram_bytes(ram: str | None) -> int | None:
    """Bytes that ``--ram`` asks for; `RequestError` for none."""
    nbytes = None if ram is None else parse_size(ram)
    if nbytes == 0:
        raise RequestError("--ram is 0: expected a size, such as 6GiB")
    return nbytes


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
