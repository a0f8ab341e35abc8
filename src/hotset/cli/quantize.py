"""`hotset quantize`: store a model in fewer bits."""

import json
import shlex
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from hotset.cli import options
from hotset.cli.outputs import check_model_output
from hotset.cli.text import read_text
from hotset.core.errors import RequestError

_WINDOW = 512


class QuantType(str, Enum):
    """Types that a model can be quantised to."""

    Q4_0 = "q4_0"
    Q4_1 = "q4_1"
    Q8_0 = "q8_0"
    IQ4_NL = "iq4_nl"
    MXFP4 = "mxfp4"


def quantize(
    model: options.Model = None,
    *,
    type: Annotated[QuantType, typer.Option("--type", case_sensitive=False, help="Type of the matrices.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT.gguf", help="The file to write.")],
    text: Annotated[
        list[Path] | None,
        typer.Option(
            help="UTF-8 text like what the model will read, by which errors are weighed; may be repeated."
        ),
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Read so many tokens of the texts, at most.")] = 8192,
    threads: options.Threads = None,
    override: options.Override = None,
    as_json: options.AsJSON = False,
) -> None:
    """Store a model in fewer bits, as a GGUF file that llama.cpp reads too.

    With --text, matrices are rounded so that the layers' outputs on it change least; without, each block for
    itself. The output matrix (the embedding, where they are one) gets 8 bits or keeps fewer; norms and
    biases are F32; routers and matrices whose rows are no multiple of 32 stay. From a Hugging Face directory
    the tokenizer is stored in Hugging Face's form, which only Hotset reads.
    """
    check_model_output(output, [model, *(text or ())])
    texts = [read_text(path) for path in text or ()]

    from hotset.activations.corpus import corpus_windows
    from hotset.cli.console import notes, progress, size, table
    from hotset.convert.quantize import quantise_model
    from hotset.core.limits import available_cores
    from hotset.formats import TensorType
    from hotset.serve.load import open_model
    from hotset.tokenizer import Tokenizer

    checkpoint = open_model(model, options.overrides(override))
    check_model_output(output, checkpoint.files())
    notes(checkpoint)
    windows = []
    if texts:
        length = min(_WINDOW, checkpoint.config.context_length, tokens)
        windows = corpus_windows(Tokenizer.from_checkpoint(checkpoint), texts, length, tokens)
        if not windows:
            raise RequestError(f"the text is too short: expected {length} tokens or more (--text)")
    with progress("Quantising") as quantising:
        written = quantise_model(
            checkpoint,
            output,
            TensorType[type.name],
            windows,
            threads=threads or available_cores(),
            progress=quantising,
        )
    before = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    read = sum(map(len, windows))
    if as_json:
        facts = {
            "model": str(checkpoint.path),
            "out": str(output),
            "type": type.value,
            "model_bytes": before,
            "out_bytes": written,
            "text_tokens": read,
        }
        print(json.dumps(facts, indent=2))
        return
    table(
        [
            ("model", f"{checkpoint.path.name}, {size(before)}"),
            ("written", f"{output.name}, {size(written)}"),
            ("errors weighed by", f"{read} tokens of text" if read else "the weights alone (no --text)"),
            ("next", f"hotset eval {shlex.quote(str(output))} --against MODEL --text FILE"),
        ]
    )
