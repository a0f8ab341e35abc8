"""`hotset chat`: a conversation in the terminal."""

import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from hotset.cli import options
from hotset.core.errors import RequestError

if TYPE_CHECKING:
    from hotset.serve.engine import Engine
    from hotset.serve.sampler import Sampling

_HELP = "/clear forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer."


def chat(
    model: options.Model = None,
    *,
    system: Annotated[
        str | None, typer.Option(help="What the model is told before the conversation.")
    ] = None,
    max_tokens: options.MaxTokens = None,
    temperature: options.Temperature = 0.7,
    top_k: options.TopK = 0,
    top_p: options.TopP = 0.95,
    min_p: options.MinP = 0.0,
    repetition_penalty: options.RepetitionPenalty = 1.0,
    presence_penalty: options.PresencePenalty = 0.0,
    seed: options.Seed = None,
    threads: options.Threads = None,
    context: options.Context = None,
    kv_type: options.KVType = "f16",
    ffn: options.Neurons = None,
    vram: options.Vram = None,
) -> None:
    """Talk with a model. /clear forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer."""
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
    if engine.tokenizer.chat_template is None:
        raise RequestError(f"{engine.model.path}: this model has no chat template; use hotset run")
    opening = [] if system is None else [{"role": "system", "content": system}]
    _converse(engine, opening, max_tokens, sampling)


def _converse(
    engine: "Engine", opening: list[dict[str, str]], max_tokens: int | None, sampling: "Sampling"
) -> None:
    """Read, answer and remember, until the user leaves."""
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if terminal:
        with suppress(ImportError):  # Windows edits lines by itself
            import readline  # noqa: F401  (line editing and history in input())

        print(_HELP)
    messages = list(opening)
    while True:
        try:
            text = input("> " if terminal else "").strip()
        except EOFError:
            if terminal:
                print()
            return
        except KeyboardInterrupt:
            if not terminal:
                raise
            print(f"\n{_HELP}")
            continue
        if text == "/exit":
            return
        if text == "/clear":
            messages = list(opening)
        elif text.startswith("/"):
            print(_HELP)
        elif text:
            try:
                answer = _answer(engine, [*messages, {"role": "user", "content": text}], max_tokens, sampling)
            except RequestError as error:
                print(f"error: {error}; /clear makes room", file=sys.stderr)
                continue
            messages += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]


def _answer(
    engine: "Engine", messages: list[dict[str, str]], max_tokens: int | None, sampling: "Sampling"
) -> str:
    """Print the answer as it comes; what there is of it when Ctrl-C stops it."""
    pieces = []
    try:
        for token in engine.chat(messages, max_tokens=max_tokens, sampling=sampling):
            pieces.append(token.text)
            sys.stdout.write(token.text)
            sys.stdout.flush()
    except KeyboardInterrupt:
        pass
    print()
    return "".join(pieces)
