"""Ollama's API: a JSON object a line, and durations in nanoseconds."""

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from hotset.core.errors import HotsetError
from hotset.formats.pooling import Pooling, read_pooling
from hotset.serve.load import open_model
from hotset.serve.request import Token
from hotset.server.answers import Answer, Block, Piece
from hotset.server.ask import Ask, Conversation, Gap, Prompt, sampling
from hotset.server.call import Call, Handler, Reply, Streamed, dump, fields_of
from hotset.server.conversation import check_messages, check_tools, thinking_switches
from hotset.server.errors import ApiError
from hotset.server.fields import Fields
from hotset.server.generation import Generation
from hotset.server.models import Held, Known
from hotset.server.openai_chat import logprobs_list
from hotset.server.rules import Choice, one_rule, schema_of
from hotset.server.streams import streamed
from hotset.tokenizer import Tokenizer
from hotset.tokenizer.chat_template import ChatTemplate

if TYPE_CHECKING:
    from hotset.server.app import Server

_VERSION = "0.13.0"
"""Clients look whether this is new enough: the version of Ollama whose API this is."""


def _read_ask(fields: Fields, prompt: Prompt) -> Ask:
    tools = prompt.tools if isinstance(prompt, Conversation) else ()
    options = fields.fields("options") or Fields({}, "options")
    limit = options.integer("num_predict")
    if limit == 0:
        raise options.wrong("num_predict", "1 or more, or -1")
    top = fields.integer("top_logprobs", 0, 20)
    return Ask(
        model=fields.text("model") or fields.text("name"),
        prompts=[prompt],
        sampling=sampling(options, logprobs=(top or 0) if fields.flag("logprobs") else None),
        max_tokens=None if limit is None or limit < 0 else limit,
        stop=options.stops("stop"),
        stream=fields.flag("stream", True),
        rule=one_rule(schema_of(fields, "format"), Choice(tools)),
    )


def _variables(fields: Fields) -> dict[str, Any]:
    think = fields.get("think")
    if think is None:
        return {}
    if not isinstance(think, bool | str):
        raise fields.wrong("think", "true, false, low, medium or high")
    effort = {"reasoning_effort": think} if isinstance(think, str) else {}
    return thinking_switches(bool(think)) | effort


def _no_pictures(fields: Fields) -> None:
    if fields.get("images"):
        raise fields.wrong("images", "nothing: this model reads text only")


async def chat(server: "Server", call: Call) -> Reply:
    """Answer a conversation."""
    fields = fields_of(call)
    if fields.get("messages") in (None, []):
        return await _only_load(server, call, fields, {"message": {"role": "assistant", "content": ""}})
    for message in fields.objects("messages"):
        _no_pictures(message)
    prompt = Conversation(check_messages(fields), check_tools(fields), _variables(fields))

    def body(content: str, thinking: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if thinking:
            message["thinking"] = thinking
        if calls:
            message["tool_calls"] = calls
        return {"message": message}

    return await _answer(server, call, _read_ask(fields, prompt), body)


async def generate(server: "Server", call: Call) -> Reply:
    """Answer a prompt, or continue it as it is where that is asked for (raw)."""
    fields = fields_of(call)
    _no_pictures(fields)
    text = fields.text("prompt")
    if not text:
        return await _only_load(server, call, fields, {"response": ""})
    suffix = fields.text("suffix")
    system = fields.text("system")
    opening = [{"role": "system", "content": system}] if system else []
    prompt: Prompt = Gap(text, suffix) if suffix else text
    if not suffix and not fields.flag("raw"):
        prompt = Conversation([*opening, {"role": "user", "content": text}], (), _variables(fields))

    def body(content: str, thinking: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
        return {"response": content} | ({"thinking": thinking} if thinking else {})

    return await _answer(server, call, _read_ask(fields, prompt), body)


_Body = Callable[[str, str, list[dict[str, Any]]], dict[str, Any]]


async def _answer(server: "Server", call: Call, ask: Ask, body: _Body) -> Reply:
    start = time.perf_counter()
    held = await server.hold(call, ask.model)
    loaded = time.perf_counter() - start
    generation = await server.generate(call, held, ask)
    form = _Lines(held, body, loaded)
    if ask.stream:
        return streamed(generation, form, None)
    (answer,) = await generation.whole()
    calls = [_call(block) for block in answer.calls]
    line = form.line(body(answer.content, answer.reasoning, calls), answer.logprobs)
    return line | form.ending(generation)


async def _only_load(server: "Server", call: Call, fields: Fields, body: dict[str, Any]) -> Reply:
    """A request without a prompt loads the model, or with ``keep_alive`` 0 drops it."""
    name = fields.text("model") or fields.text("name")
    unload = str(fields.get("keep_alive")) in ("0", "0.0", "0s", "0m", "0h")
    known = server.models.find(name)
    if not unload:
        await server.hold(call, name)
    elif (held := server.models.held.get(known.name)) and not held.busy:
        await server.models.drop(held)
    reason = "unload" if unload else "load"
    made = {"model": known.name, "created_at": _now(), **body, "done": True, "done_reason": reason}
    if not fields.flag("stream", True):
        return made

    async def line() -> Any:
        yield dump(made) + b"\n"

    return Streamed("application/x-ndjson", line())


class _Lines:
    """A stream's lines."""

    media_type = "application/x-ndjson"
    alive = b""

    def __init__(self, held: Held, body: _Body, loaded: float) -> None:
        """`loaded`: seconds until the model was there."""
        self._held = held
        self._body = body
        self._loaded = loaded

    def line(self, body: dict[str, Any], tokens: Sequence[Token] = ()) -> dict[str, Any]:
        """A line's object; with its tokens' log-probabilities, where there are any."""
        made = {"model": self._held.known.name, "created_at": _now(), **body, "done": False}
        return made | ({"logprobs": logprobs_list(tokens, self._held.engine)} if tokens else {})

    def begin(self, generation: Generation) -> bytes:
        """Nothing: a line would say that there is text."""
        return b""

    def news(self, answer: Answer, pieces: list[Piece]) -> bytes:
        """Text as it comes; calls when they are whole."""
        lines = []
        for piece in pieces:
            if piece.block.kind == "content":
                lines.append(self.line(self._body(piece.text, "", []), piece.tokens))
            elif piece.block.kind == "reasoning":
                lines.append(self.line(self._body("", piece.text, [])))
        if answer.finish_reason and answer.calls:
            lines.append(self.line(self._body("", "", [_call(block) for block in answer.calls])))
        return b"".join([dump(line) + b"\n" for line in lines])

    def end(self, generation: Generation) -> bytes:
        """The last line, with counts."""
        return dump(self.line(self._body("", "", [])) | self.ending(generation)) + b"\n"

    def failed(self, error: ApiError) -> bytes:
        """An error, which Ollama's package raises."""
        return dump({"error": error.message}) + b"\n"

    def ending(self, generation: Generation) -> dict[str, Any]:
        """Why the answer ended, and how long it took."""
        usage, first, ended = generation.usage, generation.first or 0.0, generation.ended or 0.0
        reason = generation.answers[0].finish_reason
        return {
            "done": True,
            "done_reason": "length" if reason == "length" else "stop",
            "total_duration": int((self._loaded + ended) * 1e9),
            "load_duration": int(self._loaded * 1e9),
            "prompt_eval_count": usage.prompt,
            "prompt_eval_duration": int(first * 1e9),
            "eval_count": usage.answer,
            "eval_duration": int((ended - first) * 1e9),
        }


def _call(block: Block) -> dict[str, Any]:
    return {"function": {"name": block.name, "arguments": block.arguments}}


def _now() -> str:
    return _time(time.time())


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat().replace("+00:00", "Z")


def _about(known: Known) -> dict[str, Any]:
    return {
        "name": known.name,
        "model": known.name,
        "modified_at": _time(known.created),
        "size": known.weights,
        "digest": _digest(known),
        "details": _details(known),
    }


def _digest(known: Known) -> str:
    """Tells models apart: clients show its beginning. Not of the weights, which are not read for it."""
    return hashlib.sha256(f"{known.name} {known.source} {known.weights}".encode()).hexdigest()


def _details(known: Known) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "gguf",
        "family": known.architecture,
        "families": [known.architecture],
        "parameter_size": "",
        "quantization_level": "",
    }


async def tags(server: "Server", call: Call) -> Reply:
    """All models."""
    return {"models": [_about(known) for known in server.models.known.values()]}


async def ps(server: "Server", call: Call) -> Reply:
    """The models in memory."""
    far = "2318-09-04T00:00:00Z"  # nothing is dropped by the clock
    return {
        "models": [
            _about(held.known)
            | {"size": held.known.bytes, "expires_at": far, "size_vram": 0}
            | {"context_length": held.engine.context}
            for held in server.models.held.values()
        ]
    }


def _by_headers(known: Known) -> tuple[ChatTemplate | None, Pooling | None]:
    """What a model's file says of its template, and of how it makes embeddings."""
    try:
        checkpoint = open_model(known.source)
        return Tokenizer.from_checkpoint(checkpoint).chat_template, read_pooling(checkpoint)
    except HotsetError as error:
        raise ApiError(500, f"{known.name} cannot be read: {error}") from None


async def show(server: "Server", call: Call) -> Reply:
    """What a model can do. It is not loaded for that: clients ask so of all that there are."""
    fields = fields_of(call)
    known = server.models.find(fields.text("model") or fields.text("name"))
    held = server.models.held.get(known.name)
    if held:
        template, pooling = held.engine.tokenizer.chat_template, held.engine.model.pooling
    else:
        template, pooling = await asyncio.to_thread(_by_headers, known)
    source = "" if template is None else template.source
    capabilities = ["completion", *(["embedding"] if pooling else [])]
    if template is not None and template.shows_tools:
        capabilities.append("tools")
    if "think" in source:
        capabilities.append("thinking")
    return {
        "modelfile": "",
        "parameters": "",
        "template": source,
        "modified_at": _time(known.created),
        "details": _details(known),
        "model_info": {
            "general.architecture": known.architecture,
            f"{known.architecture}.context_length": held.engine.context if held else known.trained_context,
        },
        "capabilities": capabilities,
    }


async def version(server: "Server", call: Call) -> Reply:
    """The version of the API."""
    return {"version": _VERSION}


ROUTES: list[tuple[str, str, Handler]] = [
    ("POST", "/api/chat", chat),
    ("POST", "/api/generate", generate),
    ("GET", "/api/tags", tags),
    ("GET", "/api/ps", ps),
    ("POST", "/api/show", show),
    ("GET", "/api/version", version),
]
