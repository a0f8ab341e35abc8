"""The server: its routes, and what they share."""

import asyncio
import logging
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response
from starlette.routing import Route

from hotset.serve.request import Request
from hotset.server import (
    anthropic,
    embeddings,
    infill,
    ollama,
    openai_chat,
    openai_completions,
    openai_responses,
    page,
    service,
)
from hotset.server.access import Access
from hotset.server.answers import Answer
from hotset.server.ask import Ask, Conversation
from hotset.server.call import Call, Endpoint, Handler, dump
from hotset.server.conversation import check_fits, token_ids
from hotset.server.errors import ApiError, error_body
from hotset.server.generation import Generation
from hotset.server.guard import Guard
from hotset.server.metrics import Metrics
from hotset.server.models import Held, Models
from hotset.server.parsing import parser_of

log = logging.getLogger("hotset.server")


@dataclass(frozen=True)
class Limits:
    """What a request may be, and how it is waited for."""

    body: int = 32 << 20
    """Bytes."""
    keep_alive: float | None = 15.0
    """Seconds without a token after which a stream says that it is alive; None: never."""


class Server:
    """Models, and how they are asked."""

    def __init__(self, models: Models, limits: Limits | None = None) -> None:
        self.models = models
        self.limits = limits or Limits()
        self.metrics = Metrics(models)
        self.ready = True
        """Whether the first model is loaded."""
        self.closing = False
        """Whether no more requests are taken."""

    async def hold(self, call: Call, name: str | None) -> Held:
        """A model for as long as a request lasts."""
        if self.closing:
            raise ApiError(503, "the server is shutting down", retry=10)
        held = await self.models.take(name)
        call.stack.callback(self.models.give_back, held)
        call.facts["model"] = held.known.name
        return held

    async def generate(self, call: Call, held: Held, ask: Ask) -> Generation:
        """Begin to answer; it ends with the request. Raises `ApiError` and `HotsetError`."""
        engine, rule = held.engine, ask.rule
        # What is no conversation is continued as it stands: nothing of it is reasoning.
        talks = isinstance(ask.prompts[0], Conversation)
        constraint = None if rule is None else await asyncio.to_thread(rule.constraint, reasoning=talks)
        requests: list[Request] = []
        for prompt in ask.prompts:
            ids = await asyncio.to_thread(token_ids, engine, prompt)
            check_fits(engine, ids)
            marks = parser_of(engine, prompt, ids, forced=False).marks
            requests.append(Request(ids, ask.max_tokens, ask.sampling, ask.stop, constraint, marks))

        def answer(index: int) -> Answer:
            i = index // ask.choices
            forced = rule is not None and rule.call
            parser = parser_of(engine, ask.prompts[i], requests[i].prompt, forced=forced)
            return Answer(index, parser, ends=engine.tokenizer.end_ids, one_call=ask.one_call)

        begin = partial(Generation, engine, requests, ask.choices, answer, asyncio.get_running_loop())
        # The first constraint that a model has takes long.
        generation = await asyncio.to_thread(begin) if constraint else begin()
        call.stack.callback(self._over, call, generation)
        return generation

    def log_failure(self, error: Exception) -> None:
        """Put what no client can correct into the log."""
        log.error("a request failed", exc_info=error)

    def _over(self, call: Call, generation: Generation) -> None:
        generation.close()
        usage, first, ended = generation.usage, generation.first, generation.ended
        counts = {"prompt": usage.prompt, "cached": usage.cached, "answer": usage.answer}
        drafts = {"drafted": usage.drafted, "accepted": usage.accepted}
        self.metrics.tokens(**counts, **drafts)
        call.facts |= counts | (drafts if usage.drafted else {})
        if first is not None and ended is not None:
            self.metrics.first_token(first)
            call.facts["first"] = f"{first:.3f}s"
            if ended > first:
                call.facts["speed"] = f"{(usage.answer - len(generation.answers)) / (ended - first):.1f}/s"
        call.facts["reason"] = ",".join(answer.finish_reason or "cancelled" for answer in generation.answers)


def make_app(
    server: Server, *, keys: Collection[str] = (), host: str = "127.0.0.1", origins: Collection[str] = ()
) -> Starlette:
    """The ASGI app."""
    routes: list[tuple[str, str, Handler]] = [
        *page.ROUTES,
        *service.ROUTES,
        *openai_chat.ROUTES,
        *openai_completions.ROUTES,
        *openai_responses.ROUTES,
        *anthropic.ROUTES,
        *ollama.ROUTES,
        *embeddings.ROUTES,
        *infill.ROUTES,
    ]
    middleware = [Middleware(Access, count=server.metrics.request)]
    if origins:
        middleware.append(
            Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
        )
    middleware.append(Middleware(Guard, keys=keys, host=host, origins=origins))
    return Starlette(
        routes=[Route(path, Endpoint(server, handler), methods=[method]) for method, path, handler in routes],
        middleware=middleware,
        exception_handlers={HTTPException: _http_error},
    )


async def _http_error(request: HTTPRequest, error: Exception) -> Response:
    """What the router says, in the shape of the path's API."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    path = request.scope["path"]  # Starlette 1.0 reads no URL whose Host is no address
    messages = {404: f"no such path: {path[:100]!r}", 405: f"{request.method} is not for this path"}
    body = error_body(path, ApiError(status, messages.get(status, str(error))))
    headers = error.headers if isinstance(error, HTTPException) else None
    return Response(dump(body), status, headers, "application/json")
