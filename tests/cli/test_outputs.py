"""What commands write: refused before the work, each in one line, and nothing that is read is replaced."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gguf
import pytest
from helpers.profiles import random_profile
from helpers.random_gguf import random_model, write_plain
from helpers.systems import on_posix

from hotset.core.errors import HotsetError
from hotset.draw.picture import check_picture
from hotset.formats import open_checkpoint

# {out} is the file to write; the model is not there: whatever is said of {out} is said before it is opened.
COMMANDS = {
    "quantize": ["quantize", "{model}", "--type", "q8_0", "-o", "{out}"],
    "quantize --text": ["quantize", "{model}", "--type", "q8_0", "--text", "{text}", "-o", "{out}"],
    "convert": ["convert", "{model}", "--profile", "{profile}", "-o", "{out}"],
    "calibrate": ["calibrate", "{model}", "--profile", "{profile}", "--text", "{text}", "-o", "{out}"],
    "train-predictor": [
        *("train-predictor", "{model}", "--profile", "{profile}", "--text", "{text}", "-o", "{out}")
    ],
    "profile": ["profile", "{model}", "--text", "{text}", "-o", "{out}"],
    "profile --import": ["profile", "{model}", "--import", "{folder}", "-o", "{out}"],
    "profile --report": ["profile", "{model}", "--text", "{text}", "--report", "{out}"],
    "plan --plot": ["plan", "{model}", "--vram", "1GiB", "--plot", "{out}"],
    "bench --plot": ["bench", "{model}", "--sweep", "density", "--plot", "{out}"],
}


@pytest.fixture
def files(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("some words " * 100)
    profile = tmp_path / "profile.npz"
    model = write_plain(tmp_path / "model.gguf", random_model("llama"))
    random_profile(open_checkpoint(model)).save(profile)
    (tmp_path / "folder").mkdir()
    return {"model": model, "text": text, "profile": profile, "folder": tmp_path / "folder"}


def filled(name, files, **changes):
    return [word.format(**files | changes) for word in COMMANDS[name]]


@on_posix
@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "profile --report"])
def test_refused_before_the_model_is_opened(hotset, files, tmp_path, name):
    os.mkfifo(tmp_path / "pipe")
    cases = {
        tmp_path / "pipe": "expected a file, found a pipe",
        tmp_path / "folder": "expected a file, found a directory",
        tmp_path / "none" / "x": "there is no directory",
        Path(): "expected the name of a file",
        Path(".."): "expected the name of a file",
        files["text"]: "is one of the files to be read" if "text" in name else "",
    }
    for out, message in cases.items():
        code, printed, err = hotset(*filled(name, files, out=out, model=tmp_path / "no.gguf"))
        assert (code, printed, err.count("\n")) == (2, "", 1)
        assert message in err
        assert "no.gguf" not in err
    assert (tmp_path / "pipe").is_fifo()
    assert files["text"].read_text().startswith("some words")


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "profile --report"])
@pytest.mark.parametrize("there", ["model", "profile", "text", "other.gguf"])
def test_other_files_are_not_replaced(hotset, files, tmp_path, name, there):
    """The profile command may replace a profile: that is what it writes."""
    other = write_plain(tmp_path / "other.gguf", random_model("qwen2"))
    out = {**files, "other.gguf": other}[there]
    if there == "profile" and name.startswith("profile"):
        pytest.skip("a profile replaces a profile")
    before = out.read_bytes()
    code, printed, err = hotset(*filled(name, files, out=out))
    assert (code, printed, err.count("\n")) == (2, "", 1)
    assert "one of the files to be read" in err or "is there already and is no" in err
    assert out.read_bytes() == before


def test_what_hotset_wrote_is_replaced(hotset, files, tmp_path):
    out = tmp_path / "out.gguf"
    for kind in ("q8_0", "q4_0"):
        assert hotset("quantize", files["model"], "--type", kind, "-o", out)[0] == 0
    tensors = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(out).tensors}
    assert tensors["blk.0.ffn_up.weight"] == "Q4_0"
    assert hotset("convert", files["model"], "--profile", files["profile"], "-o", out)[0] == 0
    assert {path.name for path in tmp_path.glob("out*")} == {"out.gguf"}


def test_report_directories(hotset, files, tmp_path):
    folder = files["folder"]
    page = folder / "index.html"
    page.write_text("<title>My diary</title>")
    for out, message in {
        folder: "index.html is there already and is no profile's page",
        files["text"]: "is no directory",
        tmp_path / "none" / "report": "there is no directory",
    }.items():
        code, _, err = hotset(*filled("profile --report", files, out=out, model=tmp_path / "no.gguf"))
        assert (code, err.count("\n")) == (2, 1)
        assert message in err
    page.unlink()
    for _ in range(2):  # a report replaces a report
        assert hotset("profile", files["profile"], "--report", folder)[0] == 0


def test_pictures_have_names_that_say_how(tmp_path):
    for name in ("x.png", "x.SVG", "x.pdf"):
        check_picture(tmp_path / name)
    for name in ("x", "x.gguf", "x.doc"):
        with pytest.raises(HotsetError, match=r"expected a name that ends in \.png, \.svg, \.pdf"):
            check_picture(tmp_path / name)


@on_posix
def test_names_that_are_not_utf8(hotset, files, tmp_path):
    model, out = (
        Path(os.fsdecode(os.fsencode(tmp_path) + name)) for name in (b"/caf\xe9.gguf", b"/\xe9.gguf")
    )
    files["model"].rename(model)
    profile = tmp_path / "p.npz"
    random_profile(open_checkpoint(model)).save(profile)
    for command in (
        ("quantize", model, "--type", "q8_0", "-o", out),
        ("convert", model, "--profile", profile, "-o", out),
        ("inspect", out),
        ("inspect", out, "--json"),
    ):
        code, _, err = hotset(*command)
        assert (code, err) == (0, "")
    assert gguf.GGUFReader(out).fields["hotset.convert.source"].contents() == "caf?.gguf"


@on_posix
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_command_ended_from_outside_leaves_nothing_behind(start, demo, tmp_path, name):
    number = getattr(signal, name)
    process = start("quantize", str(demo), "--type", "q8_0", "-o", str(tmp_path / "out.gguf"))
    while not any(tmp_path.iterdir()):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(timeout=60) == 128 + number
    assert not any(tmp_path.iterdir())


@on_posix  # fakes Windows's signal
def test_a_closed_console_of_windows_ends_a_command_in_order():
    script = (
        "import os, signal\n"
        "signal.SIGBREAK = signal.SIGUSR1\n"
        "from hotset.cli import main\n"
        "try:\n"
        "    main(['--version'])\n"
        "except SystemExit:\n"
        "    os.kill(os.getpid(), signal.SIGBREAK)\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 128 + signal.SIGUSR1


@on_posix
def test_nohup_is_respected():
    script = (
        "import os, signal\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from hotset.cli import main\n"
        "try:\n"
        "    main(['--version'])\n"
        "except SystemExit:\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n"
        "    print('alive')\n"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True).endswith("alive\n")
