"""A batch on several machines: a stage of Ray Data, whose actors have a model each."""

import asyncio
import socket
import threading
from collections.abc import Callable, Mapping
from io import FileIO
from typing import Any

from hotset.core.errors import HotsetError
from hotset.serve.engine import Engine
from hotset.server.app import Server, make_app
from hotset.server.batch import Lines, answer, write_line
from hotset.server.models import Known, Models

_AT_ONCE = 32
"""Lines that one actor is given: more than it computes at the same time, so that none of its places is empty
for long, and few enough that little is lost when it is killed."""


class Answers:
    """A model that answers lines; made once in each actor."""

    def __init__(self, known: Known, options: Mapping[str, Any]) -> None:
        """`options` are those of `Engine.load`."""
        engine = Engine.load(known.source, **options)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._app = make_app(Server(Models([known], lambda known: engine)))

    def __call__(self, lines: dict[str, Any]) -> dict[str, Any]:
        """The columns ``id``, ``path`` and ``body`` to ``line`` and ``ok``."""
        asked = zip(lines["id"], lines["path"], lines["body"], strict=True)
        made = asyncio.run_coroutine_threadsafe(self._answers(list(asked)), self._loop).result()
        return {"line": [line for line, _ in made], "ok": [ok for _, ok in made]}

    async def _answers(self, asked: list[tuple[str, str, bytes]]) -> list[tuple[bytes, bool]]:
        return await asyncio.gather(*(answer(self._app, *one) for one in asked))


def _connect(address: str) -> None:
    """Join a cluster, or raise `HotsetError` where there is none."""
    import ray

    try:
        host, _, port = address.rpartition(":")
        if host:  # Ray itself tries for minutes, and then ends the process
            socket.create_connection((host, int(port)), timeout=5).close()
        ray.init(address=address, log_to_driver=False, include_dashboard=False, logging_level="ERROR")
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise HotsetError(
            f"no Ray cluster at {address} ({reason}): begin one with ray start --head (--ray)"
        ) from None


def answer_lines(
    lines: Lines,
    out: FileIO,
    known: Known,
    options: Mapping[str, Any],
    *,
    address: str,
    replicas: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Answer lines by a cluster, and write each answer when it is there; how many failed.

    `address` is the cluster's, ``auto`` for the one of this machine, or ``local``, which begins one here.
    `known` is the model, whose source has to lead to it on each machine, and `options` are `Engine.load`'s.
    `replicas` actors answer; None: one a machine. Lines of one that is killed are answered again. Raises
    `HotsetError` without a cluster.
    """
    import ray
    from ray.data import ActorPoolStrategy, DataContext, from_items

    _connect(address)
    try:
        DataContext.get_current().enable_progress_bars = False
        machines = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
        replicas = replicas or len(machines)
        cores = options.get("threads") or max(1, int(min(machines) // -(-replicas // len(machines))))
        items = [{"id": id, "path": path, "body": body} for id, (path, body) in lines.items()]
        each = max(1, min(_AT_ONCE, len(items) // replicas))
        answers = from_items(items, override_num_blocks=max(1, len(items) // each)).map_batches(
            Answers,
            fn_constructor_args=(known, {**options, "threads": cores}),
            batch_size=None,
            compute=ActorPoolStrategy(size=replicas),
            num_cpus=cores,
            scheduling_strategy="SPREAD",
        )
        failed = 0
        for done, row in enumerate(answers.iter_rows(), 1):
            write_line(out, row["line"])
            failed += not row["ok"]
            if progress:
                progress(done, len(items))
        return failed
    finally:
        ray.shutdown()
