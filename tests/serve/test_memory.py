"""What does not fit is refused before it is loaded: memory, and types of keys and values."""

import json
import subprocess
import sys

import pytest
from helpers.random_gguf import CONTEXT, random_model, write_plain
from helpers.shape_only import shape_only

from hotset.core.errors import HotsetError, RequestError
from hotset.core.limits import Memory
from hotset.formats import open_checkpoint
from hotset.formats.tensor import TensorType
from hotset.model.reading import traffic
from hotset.serve import memory
from hotset.serve.engine import Engine
from hotset.serve.memory import check_memory
from hotset.state.kv_types import kv_cache_bytes


@pytest.fixture
def available(monkeypatch):
    """Set the memory that is said to be free."""

    def set_free(free, bound="of this machine"):
        monkeypatch.setattr(memory, "available_memory", lambda: Memory(free, bound))

    return set_free


@pytest.fixture
def checkpoint(tmp_path):
    return open_checkpoint(write_plain(tmp_path / "m.gguf", random_model("llama", hidden=128)))


def test_needed_against_available(checkpoint, available):
    weights, cache = traffic(checkpoint).dense, kv_cache_bytes(checkpoint.config, CONTEXT, "f16")
    assert weights == sum(t.nbytes for name, t in checkpoint.tensors.items() if name != "token_embd.weight")
    assert cache == 2 * 2 * 2 * 32 * CONTEXT * 2  # k and v, layers, heads, numbers, tokens, bytes
    available(weights + cache)
    check_memory(checkpoint, CONTEXT, "f16")
    available(weights + cache - 1, "by the limit of its control group")
    with pytest.raises(HotsetError) as caught:
        check_memory(checkpoint, CONTEXT, "f16")
    message = str(caught.value)
    assert message.startswith(f"{checkpoint.path} needs {(weights + cache) / 1e6:.1f} MB of memory (weights ")
    assert f"KV cache of {CONTEXT} tokens" in message
    assert "are free by the limit of its control group: try a smaller quantisation" in message
    assert message.endswith("a smaller --context or --kv-type q8_0")
    check_memory(checkpoint, CONTEXT // 2, "f16")
    check_memory(checkpoint, CONTEXT, "q8_0")
    check_memory(checkpoint, CONTEXT, "f16", vram=1)
    available(1)
    with pytest.raises(HotsetError, match="a smaller --context$"):
        check_memory(checkpoint, CONTEXT, "q8_0")
    available(1 << 40)
    check_memory(checkpoint, CONTEXT, "f32")


def test_a_gpu_spares_what_it_holds(available):
    """Of IQ3_XXS, whose 98 bytes in the file are 138 in main memory, and 512 on a GPU."""
    checkpoint = shape_only(n_layers=4, hidden=1024, ffn=2048, kind=TensorType.IQ3_XXS)
    weights, cache = traffic(checkpoint).weights, kv_cache_bytes(checkpoint.config, CONTEXT, "f16")
    needed = weights + cache - (1 << 20) * 138 // 512
    available(needed)
    check_memory(checkpoint, CONTEXT, "f16", vram=1 << 20)
    available(needed - 1)
    with pytest.raises(HotsetError, match="0.3 MB of them on the GPU"):
        check_memory(checkpoint, CONTEXT, "f16", vram=1 << 20)


def test_beside_a_gpu_every_sequence_has_its_cache(checkpoint, available):
    """Main memory has that of the layers whose attention is its own, once for each sequence."""
    weights, cache = traffic(checkpoint).weights, kv_cache_bytes(checkpoint.config, CONTEXT, "f16")
    available(weights + 3 * cache)
    check_memory(checkpoint, CONTEXT, "f16", vram=1, parallel=3)
    with pytest.raises(HotsetError, match=rf", 4 KV caches of {CONTEXT} tokens .* a smaller --parallel"):
        check_memory(checkpoint, CONTEXT, "f16", vram=1, parallel=4)
    available(weights + cache)  # what is left then bounds how many there are
    check_memory(checkpoint, CONTEXT, "f16", parallel=4)


def test_nothing_is_loaded_that_does_not_fit(checkpoint, available, monkeypatch):
    available(1000)
    monkeypatch.setattr("hotset.backends.cpu.CpuBackend", None)
    with pytest.raises(HotsetError, match="of memory"):
        Engine.load(checkpoint.path)


def test_heads_that_q8_0_does_not_take(tmp_path, available, monkeypatch, capsys):
    from hotset.cli import main

    path = write_plain(tmp_path / "m.gguf", random_model("llama"))  # heads of 16
    available(1)
    with pytest.raises(HotsetError, match="a smaller --context$"):  # q8_0 is no remedy
        check_memory(open_checkpoint(path), CONTEXT, "f16")
    available(1 << 40)
    with monkeypatch.context() as patch:
        patch.setattr("hotset.backends.cpu.CpuBackend", None)  # nothing is loaded
        message = "kv_type q8_0 needs heads of a multiple of 32 numbers, and this model's have 16: use f16"
        with pytest.raises(RequestError, match=message):
            Engine.load(path, kv_type="q8_0")
        with pytest.raises(RequestError, match="kv_type is 'f8': expected f16, q8_0, f32"):
            Engine.load(path, kv_type="f8")
    with pytest.raises(SystemExit):
        main(["inspect", str(path), "--json"])
    facts = json.loads(capsys.readouterr().out)["memory"]
    assert facts["kv_cache_bytes"]["q8_0"] is facts["total_bytes"]["q8_0"] is None
    assert facts["kv_cache_bytes"]["f16"] > 0
    with pytest.raises(SystemExit):
        main(["inspect", str(path)])
    assert "not for heads of 16" in capsys.readouterr().out


@pytest.mark.parametrize(("options", "expected"), [(["--threads", "1"], ("1", 1)), ([], (None, None))])
def test_threads_bounds_numpys_too(options, expected):
    script = (
        "import atexit, json, os, sys\n"
        "def show():\n"
        "    tasks = '/proc/self/task'\n"
        "    count = len(os.listdir(tasks)) if os.path.isdir(tasks) else None\n"
        "    print(json.dumps([os.environ['OPENBLAS_NUM_THREADS'], count, 'numpy' in sys.modules]))\n"
        "atexit.register(show)\n"
        "from hotset.cli import main\n"
        f"main(['quantize', 'none.gguf', '--type', 'q8_0', '-o', 'x'] + {options!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    bound, threads, imported = json.loads(done.stdout)
    assert imported
    assert int(bound) >= 1
    if options:
        assert bound == expected[0]
        assert threads in (expected[1], None)
