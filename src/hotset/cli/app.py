"""The `hotset` command and its subcommands."""

from collections.abc import Callable
from inspect import getdoc
from typing import Annotated, Any

import typer

from hotset.cli import (
    batch,
    bench,
    calibrate,
    chat,
    convert,
    demo,
    doctor,
    evaluate,
    hub,
    inspect,
    models,
    options,
    plan,
    profile,
    quantize,
    run,
    serve,
    train_predictor,
)
from hotset.core.errors import HotsetError
from hotset.core.version import __version__, commit

app = typer.Typer(
    name="hotset",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo.demo,
    "run": run.run,
    "chat": chat.chat,
    "bench": bench.bench,
    "eval": evaluate.evaluate,
    "profile": profile.profile,
    "convert": convert.convert,
    "quantize": quantize.quantize,
    "train-predictor": train_predictor.train_predictor,
    "calibrate": calibrate.calibrate,
    "inspect": inspect.inspect,
    "list": hub.list_models,
    "pull": hub.pull,
    "rm": hub.remove,
    "plan": plan.plan,
    "doctor": doctor.doctor,
}


def _help(command: Callable[..., None]) -> str:
    """A command's docstring, each paragraph one line, which the terminal wraps."""
    return "\n\n".join(" ".join(part.split()) for part in (getdoc(command) or "").split("\n\n"))


for _name, _command in _COMMANDS.items():
    app.command(_name, help=_help(_command))(options.with_model_option(options.with_options_apart(_command)))
for _command in (models.models, serve.serve, batch.batch):  # serve: of any number of models
    app.command(help=_help(_command))(_command)

# What typer raises for wrong arguments: its base class is click's in some versions, typer's own in others.
_UsageError: Any = typer.BadParameter.__mro__[1]


def run_command(arguments: list[str]) -> int:
    """Run what the arguments ask for; its exit code. Wrong arguments are a `HotsetError`."""
    try:
        return app(arguments or ["--help"], prog_name="hotset", standalone_mode=False) or 0
    except typer.Abort:
        raise KeyboardInterrupt from None
    except _UsageError as error:
        command = error.ctx.command_path if error.ctx else "hotset"
        raise HotsetError(f"{error.format_message().rstrip('.')} (see {command} --help)") from None


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"hotset {__version__}" + (f" ({commit()})" if commit() else ""))
        raise typer.Exit


@app.callback()
def hotset(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Run large language models on this computer. Without MODEL a command takes the demo model."""
