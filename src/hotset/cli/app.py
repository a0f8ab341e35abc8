"""The `hotset` command and its subcommands."""

from typing import Annotated, Any

import typer

from hotset.cli import (
    bench,
    calibrate,
    chat,
    convert,
    doctor,
    evaluate,
    inspect,
    plan,
    profile,
    quantize,
    run,
    train_predictor,
)
from hotset.core.errors import HotsetError
from hotset.core.version import __version__

app = typer.Typer(
    name="hotset",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run")(run.run)
app.command("chat")(chat.chat)
app.command("bench")(bench.bench)
app.command("eval")(evaluate.evaluate)
app.command("profile")(profile.profile)
app.command("convert")(convert.convert)
app.command("quantize")(quantize.quantize)
app.command("train-predictor")(train_predictor.train_predictor)
app.command("calibrate")(calibrate.calibrate)
app.command("inspect")(inspect.inspect)
app.command("plan")(plan.plan)
app.command("doctor")(doctor.doctor)

# What typer raises for wrong arguments: its base class is click's in some versions, typer's own in others.
_UsageError: Any = typer.BadParameter.__mro__[1]


def run_command(arguments: list[str]) -> int:
    """Run what the arguments ask for; its exit code. Wrong arguments are a `HotsetError`."""
    try:
        return app(arguments or ["--help"], prog_name="hotset", standalone_mode=False) or 0
    except typer.Abort:
        raise KeyboardInterrupt from None
    except _UsageError as error:
        raise HotsetError(f"{error.format_message().rstrip('.')} (see hotset --help)") from None


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"hotset {__version__}")
        raise typer.Exit


@app.callback()
def hotset(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Run large language models on this computer. Without MODEL a command takes the demo model."""
