"""Loading a model that is to answer, for `hotset run` and `hotset chat`."""

import sys
import time
from typing import TYPE_CHECKING

from hotset.cli import options
from hotset.cli.answer import Speaker, note

if TYPE_CHECKING:
    from hotset.serve.constraint import Constraint
    from hotset.serve.engine import Engine


def load_speaker(
    model: str | None,
    asked: options.Answering,
    *,
    temperature: float,
    top_p: float,
    constraint: "Constraint | None" = None,
) -> Speaker:
    """The model, to answer as `asked`; raises `RequestError` for options that cannot be read."""
    tools = options.read_tools(asked.tools)
    variables = options.template_variables(asked.template_var)

    from hotset.serve.sampler import Sampling

    sampling = Sampling(
        temperature=temperature,
        top_k=asked.top_k,
        top_p=top_p,
        min_p=asked.min_p,
        repetition_penalty=asked.repetition_penalty,
        presence_penalty=asked.presence_penalty,
        seed=asked.seed,
    )
    engine = _load_engine(model, asked)
    template = engine.tokenizer.chat_template
    if tools and template and not template.shows_tools:
        note("the model's chat template has no place for tools: it is not told of them (--tools)")
    return Speaker(
        engine,
        sampling,
        max_tokens=asked.max_tokens,
        stop=asked.stop or (),
        tools=tools,
        think=asked.think,
        variables=variables,
        constraint=constraint,
        quiet=asked.quiet,
        verbose=asked.verbose,
    )


def _load_engine(model: str | None, asked: options.Answering) -> "Engine":
    """The model with a context, and on stderr what the user should know of it, unless that is quiet."""
    from hotset.cli.console import notes, progress
    from hotset.serve.engine import Engine

    start = time.perf_counter()
    with progress("Loading") as loading:
        engine = Engine.load(
            model,
            threads=asked.threads,
            context=asked.context,
            kv_type=asked.kv_type,
            ffn=asked.ffn,
            speculate=asked.speculate,
            vram=options.vram_bytes(asked.vram),
            ram=options.ram_bytes(asked.ram),
            overrides=options.overrides(asked.override),
            progress=None if asked.quiet else loading,
        )
    if asked.quiet:
        return engine
    notes(engine.model)
    if asked.verbose:
        backend = engine.model.backend
        print(
            f"model: {engine.model.path}; loaded in {time.perf_counter() - start:.2f} s; "
            f"threads: {backend.threads}; kernels: {backend.level}; context: {engine.context} tokens in "
            f"{asked.kv_type.lower()}",
            file=sys.stderr,
        )
    return engine
