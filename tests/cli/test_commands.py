"""The commands end to end, on the demo model."""

import json
import re
import signal
import time
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType
from helpers.random_gguf import random_model, write_plain
from helpers.systems import on_posix

from hotset import Engine, Sampling

TEXT = "The old lighthouse keeper walked down to the harbour every morning to watch the boats come in. " * 12


# SmolLM2 wavers on "What is the capital of France?": by the F32 reference its first word is "The" with a
# probability of 0.15, or a wrong one with 0.14. Here each word up to "Paris" is clearly the likeliest.
QUESTION = "Where is the Eiffel Tower?"


def test_run_answers_paris(hotset, demo):
    code, out, err = hotset("run", "-p", QUESTION, "-n", "40", "-q")
    assert (code, err) == (0, "")
    assert out.startswith("The Eiffel Tower is located in Paris")
    assert out.endswith("\n")
    assert hotset("run", demo, "-p", QUESTION, "-n", "40", "-q") == (0, out, "")


def test_run_reads_stdin_and_streams(start, demo):
    process = start("run", "-n", "30", "--threads", "2", "--quiet")
    out, err = process.communicate(b"Count from one to ten in words.", timeout=120)
    assert (process.returncode, err) == (0, b"")
    assert len(out.split()) > 5


def test_run_raw_continues(hotset, demo):
    code, out, _ = hotset("run", demo, "--raw", "-p", "One, two, three, four,", "-n", "6")
    assert code == 0
    assert out.lstrip().startswith("five")


def test_sampling_flags_and_stop(hotset, demo):
    options = (
        "-q",
        "-p",
        "Tell me a story.",
        "-n",
        "24",
        "--temperature",
        "1",
        "--top-k",
        "50",
        "--top-p",
        "0.95",
    )
    first = hotset("run", *options, "--seed", "1", "--min-p", "0.01", "--kv-type", "q8_0")
    assert first[0] == 0
    assert hotset("run", *options, "--seed", "1", "--min-p", "0.01", "--kv-type", "q8_0") == first
    assert hotset("run", *options, "--seed", "2") != first
    code, out, _ = hotset("run", "-p", QUESTION, "-n", "40", "--stop", "in Paris")
    assert (code, out) == (0, "The Eiffel Tower is located \n")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--context", "20"], "prompt has 31 tokens.*room for 20.*--context"),
        (["--context", "100000"], "100000.*8192"),
        (["--kv-type", "f8"], "kv_type is 'f8': expected f16, q8_0, f32"),
    ],
)
def test_what_does_not_fit_is_refused(hotset, demo, arguments, named):
    code, out, err = hotset("run", "-p", "Hello", *arguments)
    assert (code, out.strip(), err.count("\n")) == (2, "", 1)
    assert re.search(named, err)


QUICK = ("--prompt-tokens", "32", "--tokens", "4", "--repeats", "1")


def test_bench_json(hotset, demo):
    code, out, err = hotset("bench", demo, "--threads", "1", *QUICK, "--json")
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert result["threads"] == 1
    assert result["model"] == str(demo)
    assert result["prefill_tokens_per_second"] > result["decode_tokens_per_second"] > 1
    assert 0 < result["decode_gb_per_second"] <= result["memory_gb_per_second"]
    assert isinstance(result["level"], str)
    assert (result["prefill_tokens"], result["decode_tokens"]) == (32, 4)
    assert "parallel" not in result


def test_bench_leaves_out_what_is_not_wanted(hotset, demo):
    code, out, err = hotset("bench", demo, *QUICK, "--prompt-tokens", "0")
    assert (code, err, "prefill" in out, "decode, 4 tokens" in out) == (0, "", False, True)
    code, out, err = hotset("bench", demo, *QUICK, "--tokens", "0", "--json")
    result = json.loads(out)
    assert (result["decode_tokens"], result["decode_tokens_per_second"]) == (0, None)
    assert result["prefill_tokens_per_second"] > 1


def test_bench_of_several_sequences(hotset, demo):
    options = ("--prompt-tokens", "0", "--tokens", "4", "--repeats", "1", "--parallel", "1, 3")
    code, out, err = hotset("bench", demo, *options, "--json")
    assert (code, err) == (0, "")
    one, three = json.loads(out)["parallel"]
    assert (one["sequences"], three["sequences"]) == (1, 3)
    for point in (one, three):
        assert 0 < point["gap_p50_ms"] <= point["gap_max_ms"]
        # Four tokens: the median of their gaps says about how long a step takes.
        assert point["tokens_per_second"] >= point["sequences"] * 1e3 / point["gap_max_ms"]
    code, out, err = hotset("bench", demo, *options)
    assert (code, err) == (0, "")
    assert re.search(r"sequences +tokens/s +gap, median ms +gap, longest ms", out)


def test_bench_zones(hotset, demo):
    code, out, err = hotset("bench", demo, *QUICK, "--zones", "--json")
    assert (code, err) == (0, "")
    zones = {zone["zone"]: zone for zone in json.loads(out)}
    assert {"outside the native code", "attention: output", "FFN: down", "head"} <= set(zones)
    assert all(zone["decode_us"] > 0 and zone["prefill_us"] > 0 for zone in zones.values())
    # Single tokens read the weights that a prompt's share.
    assert sum(zone["decode_us"] for zone in zones.values()) > sum(z["prefill_us"] for z in zones.values())
    code, out, err = hotset("bench", demo, *QUICK, "--tokens", "0", "--zones")
    assert (code, err) == (0, "")
    assert re.search(r"^head +[\d.]+ +[\d.]+%", out, re.MULTILINE)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--parallel", "1,x"], "--parallel is '1,x': expected numbers of 1 to 64, such as 1,2,4,8"),
        (["--parallel", "0"], "--parallel is '0': expected numbers of 1 to 64"),
        (["--zones", "--tokens", "0", "--prompt-tokens", "0"], "or --tokens of 1 or more, found 0 for both"),
        (["--parallel", "2", "--tokens", "0"], "expected --tokens of 1 or more"),
        (["--tokens", "8200"], "--tokens is 8200: expected at most 81"),
        (["--prompt-tokens", "8193", "--zones"], "--prompt-tokens is 8193: expected at most 8192"),
        (["--parallel", "2", "--tokens", "8065"], "--tokens is 8065: expected at most 8064, for which the"),
        (["--parallel", "2", "--trace"], "go with neither --sweep nor --trace"),
        (["--repeats", "2", "--sweep", "density"], "go with neither --sweep nor --trace"),
        (["--zones", "--trace"], "--zones goes with none of --sweep, --trace, --parallel and --vram"),
    ],
)
def test_bench_refuses(hotset, demo, options, named):
    code, out, err = hotset("bench", demo, *options)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert named in err


def test_eval(hotset, demo, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    options = ("--text", path, "--tokens", "128", "--context", "64")
    code, out, err = hotset("eval", demo, *options, "--against", demo, "--json")
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert (result["tokens"], result["window"]) == (62, 64)
    assert 1 < result["perplexity"] < 30
    assert result["reference_perplexity"] == pytest.approx(result["perplexity"], rel=1e-6)
    assert result["kl_mean"] == pytest.approx(0, abs=1e-6)
    assert result["top1_agreement"] == 1
    code, out, _ = hotset("eval", *options)
    assert code == 0
    assert f"{result['perplexity']:.4f}" in out


def test_eval_of_multiple_choice(hotset, demo):
    facts = Path(__file__).parents[1] / "measure" / "facts.jsonl"
    code, out, err = hotset("eval", "--choices", facts, "--against", demo, "--json")
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert (result["questions"], result["same_choice"]) == (20, 1)
    assert 0.5 < result["acc"] < 1, "far from the quarter that chance gives"
    assert result["acc_stderr"] == pytest.approx((result["acc"] * (1 - result["acc"]) / 19) ** 0.5)
    assert result["reference"] == {name: result[name] for name in result["reference"]}
    code, out, _ = hotset("eval", demo, "--choices", facts)
    assert code == 0
    assert f"{result['acc']:.1%} ± {result['acc_stderr']:.1%}" in out


def test_inspect(hotset, demo):
    code, out, err = hotset("inspect", "--json", "--context", "2048")
    assert (code, err) == (0, "")
    facts = json.loads(out)
    assert facts["architecture"] == "llama"
    assert facts["parameters"] == 134_515_008
    assert (facts["layers"], facts["hidden_size"], facts["ffn_size"]) == (30, 576, 1536)
    assert (facts["heads"], facts["kv_heads"], facts["vocab_size"]) == (9, 3, 49152)
    assert facts["tensors_by_type"]["Q4_1"]["tensors"] > 200
    memory = facts["memory"]
    assert memory["weights_bytes"] == sum(t["bytes"] for t in facts["tensors_by_type"].values())
    assert memory["kv_cache_bytes"]["f16"] == 30 * 2 * 3 * 64 * 2 * 2048
    assert memory["total_bytes"]["q8_0"] == memory["weights_bytes"] + memory["kv_cache_bytes"]["q8_0"]
    code, out, _ = hotset("inspect", demo)
    assert code == 0
    assert "llama" in out
    assert "134.5 M" in out


def test_inspect_tells_what_takes_more_in_memory(hotset, tmp_path):
    model = random_model("llama", hidden=256, ffn=512)
    path = write_plain(tmp_path / "m.gguf", model, GGMLQuantizationType.TQ1_0)
    code, out, _ = hotset("inspect", path)
    assert code == 0 and "in memory, without loss" in out
    facts = json.loads(hotset("inspect", path, "--json")[1])
    ternary = facts["tensors_by_type"]["TQ1_0"]
    assert ternary["memory_bytes"] * 54 == ternary["bytes"] * 66
    assert facts["memory"]["weights_bytes"] == sum(
        group["memory_bytes"] for group in facts["tensors_by_type"].values()
    )


@on_posix
def test_ctrl_c_is_130_without_a_traceback(start, demo):
    process = start("run", "-p", "Write a very long story about the sea.", "-n", "2000")
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, b"")


@on_posix
def test_a_command_ended_from_outside_leaves_nothing_behind(start, demo, tmp_path):
    process = start("quantize", str(demo), "--type", "q8_0", "-o", str(tmp_path / "out.gguf"))
    while not any(tmp_path.iterdir()):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    assert not any(tmp_path.iterdir())


def test_a_closed_pipe_is_no_error(start, demo):
    process = start("run", "-p", "Write a very long story about the sea.", "-n", "2000")
    assert process.stdout.read(1)
    process.stdout.close()
    process.wait(timeout=60)
    assert (process.returncode, process.stderr.read()) == (1, b"")


def test_chat_over_pipes_remembers(start, demo):
    process = start("chat", demo, "--temperature", "0", "-n", "30", "-q")
    questions = b"Where is the Eiffel Tower?\nWhen was it built?\n"
    out, err = process.communicate(questions, timeout=120)
    assert (process.returncode, err) == (0, b"")
    answers = out.decode().splitlines()
    assert "Paris" in answers[0]
    assert "The Eiffel Tower was built" in answers[1]


def test_python_api(demo):
    engine = Engine.load(demo, threads=2, context=256)
    assert engine.context == 256
    tokens = list(engine.generate("The capital of France is", max_tokens=5, sampling=Sampling(logprobs=2)))
    assert "Paris" in "".join(token.text for token in tokens)
    assert tokens[-1].finish_reason == "length"
    assert all(token.logprobs.top[0] == (token.id, token.logprobs.chosen) for token in tokens)
    # The next request shares a prefix with this one: the same answer as from an empty cache.
    question = [{"role": "user", "content": QUESTION}]
    fresh = Engine.load(demo, threads=2, context=256)
    answers = [[token.id for token in e.chat(question, max_tokens=20)] for e in (engine, engine, fresh)]
    assert answers[0] == answers[1] == answers[2]
