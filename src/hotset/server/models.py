"""The models that a server has by name: loaded on demand, within a budget, the longest unused out first."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hotset.core.errors import HotsetError
from hotset.core.limits import available_memory
from hotset.serve.engine import Engine
from hotset.server.errors import ApiError


@dataclass(frozen=True)
class Known:
    """A model that may be asked for."""

    name: str
    source: str | None
    """Where it is: what `Engine.load` takes."""
    bytes: int = 0
    """What it takes in memory: weights, keys and values."""
    trained_context: int = 0
    architecture: str = ""
    weights: int = 0
    """Bytes of its weights alone."""
    created: int = field(default_factory=lambda: int(time.time()))


@dataclass(eq=False)
class Held:
    """A model in memory."""

    known: Known
    engine: Engine
    busy: int = 0
    """Requests that hold it."""
    used: float = field(default_factory=time.monotonic)


class Models:
    """Models by name. For one event loop; what takes long is done by other threads."""

    def __init__(
        self, known: Sequence[Known], load: Callable[[Known], Engine], room: int | None = None
    ) -> None:
        """`room` is how many bytes all may take; None: what the machine has free."""
        self.known = {model.name: model for model in known}
        self.held: dict[str, Held] = {}
        self._load = load
        self._room = room
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._one = asyncio.Lock()  # that is being loaded
        self._wanted: Counter[str] = Counter()  # requests that wait until a model is loaded
        self._idle = asyncio.Event()  # a model has become idle, or nobody wants one any more
        self._roomy = asyncio.Event()  # no model waits for another to become idle
        self._roomy.set()

    def find(self, name: str | None) -> Known:
        """The model that a request names. A server with one model answers for any name."""
        name = name and name.removesuffix(":latest")  # as Ollama's clients say
        if len(self.known) == 1 or not name:
            return next(iter(self.known.values()))
        if name not in self.known:
            names = ", ".join(self.known)
            raise ApiError(
                404,
                f"no model {name[:100]!r}: this server has {names}",
                param="model",
                code="model_not_found",
            )
        return self.known[name]

    async def take(self, name: str | None) -> Held:
        """A model, in memory and not to be dropped until it is given back; loads it where need be.

        Requests are served as they come: where models have to become idle for another, none begins on them.
        """
        known = self.find(name)
        await self._roomy.wait()
        self._wanted[known.name] += 1
        try:
            while (held := self.held.get(known.name)) is None:
                await self._loaded(known)
        finally:
            self._wanted[known.name] -= 1
            if not self._wanted[known.name]:
                self._idle.set()
        held.busy += 1
        held.used = time.monotonic()
        return held

    async def _loaded(self, known: Known) -> None:
        """Wait until a model is loaded."""
        task = self._loading.get(known.name)
        if task is None:
            task = asyncio.create_task(self._bring(known))
            task.add_done_callback(lambda task: task.cancelled() or task.exception())
            self._loading[known.name] = task
        await asyncio.shield(task)  # others may wait for it too

    def give_back(self, held: Held) -> None:
        """Say that a request no longer needs its model."""
        held.busy -= 1
        held.used = time.monotonic()
        if not held.busy:
            self._idle.set()

    async def drop(self, held: Held) -> None:
        """Take an idle model out of memory."""
        engines = [self.held.pop(held.known.name).engine]
        # The thread keeps what it is given for a moment longer, and so would keep the weights.
        await asyncio.to_thread(lambda: engines.pop().close())

    async def close(self) -> None:
        """End all requests and drop all models."""
        for task in list(self._loading.values()):
            with contextlib.suppress(Exception):
                await task
        for held in list(self.held.values()):
            await self.drop(held)

    async def _bring(self, known: Known) -> None:
        try:
            async with self._one:
                await self._make_room(known)
                try:
                    engine = await asyncio.to_thread(self._load, known)
                except (HotsetError, OSError, MemoryError) as error:
                    raise ApiError(500, f"{known.name} cannot be loaded: {error}") from error
                self.held[known.name] = Held(known, engine)
        finally:
            del self._loading[known.name]

    async def _make_room(self, known: Known) -> None:
        """Drop models, the longest unused first, until one more fits; wait while all are busy.

        Raises `ApiError` where nobody wants that one any more.
        """
        try:
            while self.held and self._lacks(known):
                if not self._wanted[known.name]:
                    raise ApiError(503, f"nobody waits for {known.name}")
                self._idle.clear()
                if not await self._drop_one():
                    self._roomy.clear()
                    await self._idle.wait()
        finally:
            self._roomy.set()

    async def _drop_one(self) -> bool:
        """Drop the longest unused model that is idle; False where all are busy, or about to be.

        A method of its own: nothing may refer to the model when memory is looked at next.
        """
        idle = [held for name, held in self.held.items() if not held.busy and not self._wanted[name]]
        if idle:
            await self.drop(min(idle, key=lambda held: held.used))
        return bool(idle)

    def _lacks(self, known: Known) -> bool:
        if self._room is not None:
            return sum(held.known.bytes for held in self.held.values()) + known.bytes > self._room
        return known.bytes > available_memory().free
