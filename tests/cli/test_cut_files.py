"""A model's file that becomes shorter while it is mapped: one line that names it, nothing half-written."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as Q
from helpers.profiles import random_profile
from helpers.random_gguf import random_model, write_plain

from hotset.core.errors import CheckpointError
from hotset.formats import mapped, open_checkpoint

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows does not cut mapped files")

# The file is cut when it is open and the work begins.
SCRIPT = """
import importlib, os, sys
place, name = sys.argv[3].rsplit(".", 1)
module = importlib.import_module(place)
real = getattr(module, name)
def cut(*arguments, **options):
    result = real(*arguments, **options)
    os.truncate(sys.argv[1], int(sys.argv[2]))
    return result
setattr(module, name, cut)
from hotset.tokenizer import Tokenizer
Tokenizer.from_checkpoint = classmethod(lambda cls, checkpoint: None)
from hotset.cli import main
main(sys.argv[4:])
"""


@pytest.fixture
def model(tmp_path):
    return write_plain(tmp_path / "m.gguf", random_model("llama", hidden=256, ffn=512), Q.F32)


@pytest.mark.parametrize("room", [16_384, 0])
def test_commands_name_the_file(model, tmp_path, room):
    profile = tmp_path / "p.npz"
    random_profile(open_checkpoint(model)).save(profile)
    whole = model.read_bytes()
    out = tmp_path / "o.gguf"
    for opening, *command in (
        ("hotset.serve.load.open_model", "bench", model),
        ("hotset.convert.quantize.as_gguf", "quantize", model, "--type", "q8_0", "-o", out),
        ("hotset.convert.by_neuron.as_gguf", "convert", model, "--profile", profile, "-o", out),
    ):
        model.write_bytes(whole)
        size = room or len(whole) - 100  # the last page stays, and reads as zeros at its end
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, model, str(size), opening, *map(str, command)],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert done.stderr == (
            f"error: {model}: the file was cut short while it was read: expected {len(whole)} bytes, found "
            f"{size}; get it again\n"
        )
        assert {path.name for path in tmp_path.iterdir()} == {"m.gguf", "p.npz"}


def test_other_bus_errors_end_the_process_as_before(tmp_path):
    path = tmp_path / "other"
    path.write_bytes(bytes(1 << 16))
    script = (
        "import mmap, os, sys\n"
        "from hotset.backends.cpu.cut_files import survive_cut_files\n"
        "survive_cut_files()\n"
        "file = open(sys.argv[1], 'r+b')\n"
        "mapping = mmap.mmap(file.fileno(), 0)\n"
        "os.truncate(sys.argv[1], 0)\n"
        "mapping[1 << 15]\n"
    )
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, check=False)
    assert done.returncode == -signal.SIGBUS


def test_a_whole_file_is_no_error(model):
    checkpoint = open_checkpoint(model)
    mapped.check_whole()
    os.truncate(model, Path(model).stat().st_size - 1)
    with pytest.raises(CheckpointError, match=r"m\.gguf: the file was cut short"):
        mapped.check_whole()
    del checkpoint
    mapped.check_whole()
