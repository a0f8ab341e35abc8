"""`hotset run`: answer one prompt."""

import sys
from typing import Annotated

import typer

from hotset.cli import options
from hotset.core.errors import RequestError


def run(
    model: options.Model = None,
    *,
    prompt: Annotated[
        str | None, typer.Option("-p", "--prompt", help="The prompt; standard input if not given.")
    ] = None,
    max_tokens: options.MaxTokens = None,
    temperature: options.Temperature = 0.0,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    min_p: options.MinP = 0.0,
    repetition_penalty: options.RepetitionPenalty = 1.0,
    presence_penalty: options.PresencePenalty = 0.0,
    seed: options.Seed = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be repeated.")] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt, without the chat template.")
    ] = False,
    threads: options.Threads = None,
    context: options.Context = None,
    kv_type: options.KVType = "f16",
    ffn: options.Neurons = None,
    vram: options.Vram = None,
) -> None:
    """Answer a prompt, by the model's chat template if it has one."""
    text = _read_stdin() if prompt is None else prompt
    if not text.strip():
        raise RequestError("the prompt is empty: give one with -p TEXT or on standard input")

    from hotset.cli.console import notes, progress
    from hotset.serve.engine import Engine
    from hotset.serve.sampler import Sampling

    sampling = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        seed=seed,
    )
    with progress("Loading") as loading:
        engine = Engine.load(
            model,
            threads=threads,
            context=context,
            kv_type=kv_type,
            ffn=ffn,
            vram=options.vram_bytes(vram),
            progress=loading,
        )
    notes(engine.model)
    if raw or engine.tokenizer.chat_template is None:
        tokens = engine.generate(text, max_tokens=max_tokens, sampling=sampling, stop=stop or ())
    else:
        messages = [{"role": "user", "content": text}]
        tokens = engine.chat(messages, max_tokens=max_tokens, sampling=sampling, stop=stop or ())
    write, flush = sys.stdout.write, sys.stdout.flush
    try:
        for token in tokens:
            write(token.text)
            flush()
    finally:
        write("\n")


def _read_stdin() -> str:
    if sys.stdin is None or sys.stdin.isatty():
        raise RequestError("no prompt: give one with -p TEXT or on standard input")
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise RequestError(f"standard input is not UTF-8 text: byte {error.start} cannot be read") from None
