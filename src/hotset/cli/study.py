"""What `hotset train-predictor` and `hotset calibrate` begin with."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hotset.cli import options
from hotset.cli.convert import FFNType
from hotset.cli.outputs import check_model_output
from hotset.cli.text import read_text
from hotset.core.config import FFNPlan

if TYPE_CHECKING:
    from hotset.activations.profile import ActivationProfile
    from hotset.formats import TensorType
    from hotset.formats.checkpoint import Checkpoint
    from hotset.sparsify.study import Study, Windows

Profile = Annotated[Path, typer.Option(help="Activation profile of the model (hotset profile).")]
Text = Annotated[
    list[Path],
    typer.Option(help="UTF-8 text to learn from, of many kinds; may be repeated."),
]
HeldOut = Annotated[
    list[Path] | None,
    typer.Option(help="UTF-8 text to judge by; each text's last fifth if not given.", show_default=False),
]
Out = Annotated[Path, typer.Option("-o", "--output", metavar="OUT.gguf", help="The file to write.")]
FFN = Annotated[
    FFNType | None,
    typer.Option(
        "--ffn",
        case_sensitive=False,
        help="Type of the neurons; if not given, each matrix's own, and 8 bits for a quantised down.",
        show_default=False,
    ),
]
Tokens = Annotated[int, typer.Option(min=1, help="Tokens to use of all texts together, alike of each.")]


NO_GAIN = "in no layer leaving out neurons is clearly faster on this computer"


@dataclass(frozen=True)
class Opened:
    """A model under study."""

    checkpoint: "Checkpoint"
    profile: "ActivationProfile"
    study: "Study"
    windows: "Windows"
    ffn_type: "TensorType | None"
    """Of the neurons, where the user named one."""


@contextmanager
def opened(
    model: str | None,
    *,
    override: Sequence[str] | None,
    profile: Path,
    text: Sequence[Path],
    held_out: Sequence[Path] | None,
    tokens: int,
    out: Path,
    ffn: FFNType | None,
    threads: int | None,
    plan: FFNPlan,
) -> Iterator[Opened]:
    """Check all that the user named, cheapest first, then load and store the model as `plan` asks for."""
    check_model_output(out, [model, profile, *text, *(held_out or ())])
    written = [read_text(path) for path in text]
    judging = [read_text(path) for path in held_out or ()]

    from hotset.activations.profile import load_profile
    from hotset.cli.console import notes, progress
    from hotset.formats import TensorType
    from hotset.serve.load import load_model, open_model
    from hotset.sparsify.study import WINDOW, split, study

    checkpoint = open_model(model, options.overrides(override))
    check_model_output(out, checkpoint.files())
    activation_profile = load_profile(profile)
    activation_profile.check(checkpoint)
    with progress("Loading") as loading:
        window = min(WINDOW, checkpoint.config.context_length)
        loaded = load_model(checkpoint, threads=threads, context=window, progress=loading)
    notes(loaded)
    encode = loaded.tokenizer.encode
    opening = loaded.tokenizer.bos_id if loaded.tokenizer.bos_id in encode("") else None
    windows = split(
        [encode(words) for words in written], [encode(words) for words in judging], window, opening, tokens
    )
    kind = TensorType[ffn.name] if ffn else None
    with study(checkpoint, loaded.transformer, activation_profile, out, kind, plan, progress) as studied:
        yield Opened(checkpoint, activation_profile, studied, windows, kind)
