"""What the kernels of packets become: one instruction a word, which nothing keeps back."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "helpers" / "packet_code.py"


def accesses(*target: str) -> list[tuple[str, str, str]]:
    """Of kernels, in the loop that waits or not: loads and stores."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, str(SCRIPT), *target]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [
        (kernel, where, what)
        for kernel, where, what in (line.split(" ", 2) for line in done.stdout.splitlines())
    ]


@pytest.mark.parametrize("capability", ["75", "120"])
def test_nvidia(capability: str) -> None:
    """PTX: volatile accesses are relaxed ones at the system's scope (PTX ISA, volatile operation)."""
    found = accesses("cuda", capability, "32")
    wide = {access for access in found if "b64" in access[2]}
    assert wide == {
        ("send", "once", "st.volatile.global.b64"),
        ("send_chosen", "once", "st.volatile.global.b64"),
        ("receive", "once", "ld.volatile.global.b64"),
        ("receive", "waits", "ld.volatile.global.b64"),
    }
    # Nothing else is in the loop.
    assert {what for kernel, where, what in found if where == "waits"} == {"ld.volatile.global.b64"}


@pytest.mark.parametrize(
    ("architecture", "lanes", "past_caches"), [("gfx1100", "32", "glc"), ("gfx942", "64", "sc1")]
)
def test_amd(architecture: str, lanes: str, past_caches: str) -> None:
    found = accesses("hip", architecture, lanes)
    wide = [access for access in found if re.search("b64|dwordx2", access[2])]
    loads = [access for access in wide if "load" in access[2]]
    assert any(where == "waits" for _, where, _ in loads)
    assert all(kernel == "receive" and past_caches in what for kernel, _, what in loads)
    assert {kernel for kernel, _, what in wide if "store" in what} == {"send", "send_chosen"}
