"""One command on a machine with a GPU, under 8 minutes: is every kernel right, and how fast is it all?

1. The tests of the GPU backend on the real GPU, against the oracles that they have (`pytest -m gpu`).
2. Every kernel's share of the bandwidth of a copy within the GPU's memory.
3. The hand-shake of the device and the CPU's worker, in microseconds.
4. Decoding and prompts of synthetic ReGLU Q4_0 models (7B; 13B and 40B with fewer layers), one neuron in ten
   firing, over VRAM budgets, against offloading by whole layers: Hotset's own, and llama.cpp's where a build
   for GPUs is at hand. A budget under what the GPU has is simulated, and labelled so.

Each part has its time; what fails is reported, and the next part goes on. `--stand-in` runs the same with
tiny sizes on a machine without a GPU, where the figures mean nothing.

    python benchmarks/gpu_suite.py --out gpu_suite
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from machine import report, write_json

ROOT = Path(__file__).parents[1]
SECONDS = 460.0
TESTS_SECONDS = 120.0
STAND_IN_SHAPE = {"vocab": 600, "context": 64, "hidden": 512, "ffn": 512, "heads": 8, "kv_heads": 8}


class Suite:
    """The parts, what they found, and the time that is left."""

    def __init__(self, stand_in: bool, directory: Path) -> None:
        self.stand_in, self.directory = stand_in, directory
        self.start = time.monotonic()
        self.results: dict[str, Any] = {"stand_in": stand_in}
        self.failures: list[str] = []

    def left(self) -> float:
        """Seconds."""
        return SECONDS - (time.monotonic() - self.start)

    def part(self, name: str, work: Callable[[], Any]) -> None:
        """Run a part; a failure is noted, with its last lines."""
        print(f"== {name} ({self.left():.0f} s left)", flush=True)
        begin = time.monotonic()
        try:
            if self.left() <= 0:
                raise TimeoutError("no time left")
            found = work()
        except Exception as error:
            found = {"failed": f"{type(error).__name__}: {error}", "where": traceback.format_exc()[-2000:]}
            self.failures.append(name)
            print(f"   failed: {found['failed']}", flush=True)
        self.results[name] = found
        self.results.setdefault("seconds", {})[name] = time.monotonic() - begin

    def device_name(self) -> dict[str, Any]:
        """Which GPU this is."""
        import torch
        import triton

        versions = {"torch": torch.__version__, "triton": triton.__version__}
        if self.stand_in:
            return {"name": "stand-in: no GPU, figures mean nothing"} | versions
        properties = torch.cuda.get_device_properties(0)
        return versions | {
            "name": properties.name,
            "memory_gb": properties.total_memory / 1e9,
            "multiprocessors": properties.multi_processor_count,
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
        }

    def tests(self) -> dict[str, Any]:
        """The tests on the real GPU; in the stand-in, one of them in the interpreter."""
        select = ["-k", "test_norm_that_adds"] if self.stand_in else ["-m", "gpu"]
        if not self.stand_in and find_spec("xdist"):
            select += ["-n", str(min(8, os.cpu_count() or 1))]
        folders = ["tests/backends/gpu", "tests/hybrid"]
        # The hand-shake is timed below, where nothing runs beside it.
        select += ["--deselect", "tests/hybrid/test_gpu.py::test_the_hand_shake_on_a_gpu"]
        command = [sys.executable, "-m", "pytest", "-q", "-rf", "--tb=line", *select, *folders]
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        limit = min(TESTS_SECONDS, self.left())
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=limit, check=False
            )
        except subprocess.TimeoutExpired as error:
            so_far = (error.stdout or b"").decode(errors="replace")
            return {"passed": False, "output": f"not done after {limit:.0f} s: {so_far[-2000:]}"}
        if done.returncode:
            self.failures.append("tests")
        return {"passed": done.returncode == 0, "output": done.stdout[-3000:] or done.stderr[-3000:]}

    def kernels(self) -> dict[str, Any]:
        """Figures of every kernel."""
        from gpu_suite_kernels import SMALL, KernelSuite, Sizes

        from hotset.backends.gpu import GpuBackend

        backend = GpuBackend("cpu" if self.stand_in else "cuda")
        suite = KernelSuite(backend, SMALL if self.stand_in else Sizes())
        found: dict[str, Any] = {"copy_gb_per_second": suite.copy, "kernels": []}
        for kind in (suite.matrices, suite.ffns, suite.attention, suite.predictor):
            try:
                found["kernels"] += kind()
            except Exception as error:
                found["kernels"].append(
                    {"kernel": kind.__name__, "failed": f"{type(error).__name__}: {error}"}
                )
                self.failures.append(f"kernels: {kind.__name__}")
        return found

    def handshake(self) -> dict[str, Any]:
        """Microseconds of a task of no work."""
        from hotset.hybrid.handshake import handshake_us

        device = self._device()
        return {"us_per_layer": {hidden: handshake_us(device, hidden) for hidden in (4096, 8192)}}

    def profile(self) -> dict[str, Any]:
        """The machine as `hotset doctor` measures it; the stand-in takes a published one."""
        from hotset.placing.doctor import measure_machine
        from hotset.placing.machine import find_machine

        if self.stand_in:
            self.machine = find_machine("rtx-2080-ti")
        else:
            self.machine = measure_machine()
        self.machine.save(self.directory / "machine.json")
        return {"profile": (self.directory / "machine.json").read_text()}

    def models(self) -> list[dict[str, Any]]:
        """Figures of every model, budget and engine."""
        import gpu_suite_models as parts
        import synthetic

        simulated = not self.stand_in
        run = parts.Run(self._device(), self.machine, simulated)
        sizes: Iterable[parts.Size] = parts.SIZES
        if self.stand_in:
            small = replace(synthetic.SHAPES["llama-2-7b"], **STAND_IN_SHAPE)
            synthetic.SHAPES["llama-2-7b"] = small
            run = replace(run, context=48, prompt=8, tokens=2, threads=1)
            sizes = (parts.Size("llama-2-7b", 3),)
        rows = []
        for size in sizes:
            if self.left() < 60:
                rows.append({"model": size.name, "skipped": "no time left"})
                continue
            begin = time.monotonic()
            plain = not self.stand_in and parts.llama_cpp_has_gpu()
            path, dense = parts.write_models(size, self.directory, plain=plain)
            print(f"   {size.name}: written in {time.monotonic() - begin:.0f} s", flush=True)
            # A budget takes about as long as writing does; the last one begun has to end.
            margin = 30 if not self.stand_in else 0
            for row in parts.budgets(size, path, dense, run, lambda m=margin: self.left() < m):
                rows.append(row)
                print(f"   {_line(row)}", flush=True)
                if "failed" in row:
                    self.failures.append(f"models: {row['model']} {row['engine']}")
            for file in filter(None, (path, dense)):
                file.unlink()
        return rows

    def _device(self) -> Any:
        if self.stand_in:
            from hotset.testing.stand_in import StandInDevice

            return StandInDevice()
        from hotset.hybrid.cuda import CudaDevice

        return CudaDevice()


def _line(row: dict[str, Any]) -> str:
    if "decode_tokens_per_second" not in row:
        return f"{row['model']}: {row.get('engine', '')} {row.get('failed') or row.get('skipped')}"
    return (
        f"{row['model']} at {row['budget']:.0%}, {row['engine']}: "
        f"decode {row['decode_tokens_per_second']:.2f}, "
        f"prompt {row['prefill_tokens_per_second']:.1f} tokens/s"
    )


def markdown(results: dict[str, Any]) -> str:
    """The tables, with the device's name."""
    device = results["device"]
    lines = [f"# GPU suite: {device.get('name', 'unknown device')}", ""]
    lines += [f"{key}: {value}" for key, value in device.items() if key != "name"]
    tests = results.get("tests", {})
    verdict = "passed" if tests.get("passed") else "FAILED or not done"
    lines += ["", f"Tests against the oracles on this device: {verdict}.", ""]
    kernels = results.get("kernels", {})
    if "kernels" in kernels:
        lines += [f"Copy within the device's memory: {kernels['copy_gb_per_second']:.0f} GB/s.", ""]
        lines += ["| kernel | us | GB/s | of copy | relative error |", "| --- | --- | --- | --- | --- |"]
        for row in kernels["kernels"]:
            if "failed" in row:
                lines.append(f"| {row['kernel']} | failed: {row['failed']} | | | |")
                continue
            flops = f" ({row['tflops']:.1f} TFLOPS)" if "tflops" in row else ""
            lines.append(
                f"| {row['kernel']}{flops} | {row['us']:.1f} | {row['gb_per_second']:.1f} | "
                f"{row['share_of_copy']:.0%} | {row['relative_error']:.1e} |"
            )
    for hidden, us in results.get("handshake", {}).get("us_per_layer", {}).items():
        lines += ["", f"Hand-shake of {hidden} numbers, both ways: {us:.1f} us."]
    rows = results.get("models")
    if isinstance(rows, list):
        lines += [
            "",
            "Budgets are shares of the weights, simulated by using no more of the device's memory.",
            "",
        ]
        lines += ["| model | layers | budget | engine | decode tokens/s | of the plan's | prompt tokens/s |"]
        lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
        for row in rows:
            if "decode_tokens_per_second" not in row:
                lines.append(f"| {_line(row)} | | | | | | |")
                continue
            depth = f"{row['layers']}" + ("" if row["all_layers"] else " (fewer than the real model)")
            share = row.get("measured_over_predicted")
            lines.append(
                f"| {row['model']} | {depth} | {row['budget']:.0%} | {row['engine']} | "
                f"{row['decode_tokens_per_second']:.2f} | {'' if share is None else f'{share:.2f}'} | "
                f"{row['prefill_tokens_per_second']:.1f} |"
            )
    for name, part in results.items():
        if isinstance(part, dict) and "failed" in part:
            lines += ["", f"{name} failed: {part['failed']}"]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description="Check and measure everything on a GPU, in under 8 minutes.")
    parser.add_argument("--out", type=Path, default=Path("gpu_suite"), help="of OUT.json and OUT.md")
    parser.add_argument("--dir", type=Path, help="for models while they are measured (default: temporary)")
    parser.add_argument("--stand-in", action="store_true", help="tiny sizes, no GPU: tries the suite itself")
    args = parser.parse_args()
    if args.stand_in:
        os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton
    with tempfile.TemporaryDirectory(dir=args.dir) as directory:
        suite = Suite(args.stand_in, Path(directory))
        for name in ("device", "tests", "kernels", "handshake", "profile", "models"):
            suite.part(name, suite.device_name if name == "device" else getattr(suite, name))
    results = suite.results | {"failures": suite.failures}
    write_json(args.out.with_suffix(".json"), report("gpu_suite", vars(args), results))
    text = markdown(results)
    args.out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
    for failure in suite.failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if suite.failures else 0


if __name__ == "__main__":
    sys.exit(main())
