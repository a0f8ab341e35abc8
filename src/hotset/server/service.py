"""Routes about the server itself, as llama.cpp's has them: its health, models, tokens and templates."""

import asyncio
from typing import TYPE_CHECKING, Any

from hotset.core.version import __version__
from hotset.server.ask import TEMPERATURE, TOP_P, Conversation
from hotset.server.call import Call, Handler, Raw, Reply, fields_of
from hotset.server.conversation import check_messages, check_tools, template_variables, written
from hotset.server.errors import ApiError
from hotset.server.models import Known
from hotset.server.prompts import is_id

if TYPE_CHECKING:
    from hotset.server.app import Server


async def health(server: "Server", call: Call) -> Reply:
    """Whether requests are answered; never waits for a model."""
    if server.closing:
        raise ApiError(503, "the server is shutting down", retry=10)
    if not server.ready:
        raise ApiError(503, "Loading model", retry=1)
    return {"status": "ok"}


async def metrics(server: "Server", call: Call) -> Reply:
    """Prometheus's text."""
    return Raw("text/plain; version=0.0.4; charset=utf-8", server.metrics.text())


def _model(server: "Server", known: Known) -> dict[str, Any]:
    held = server.models.held.get(known.name)
    context = held.engine.context if held else None
    return {
        "id": known.name,
        "object": "model",
        "created": known.created,
        "owned_by": "hotset",
        "max_model_len": context or known.trained_context,
        "status": {"value": "loaded" if held else "unloaded"},
        "meta": {"n_ctx": context, "n_ctx_train": known.trained_context, "size": known.weights},
    }


async def models(server: "Server", call: Call) -> Reply:
    """All models, loaded or not."""
    data = [_model(server, known) for known in server.models.known.values()]
    codex = [{"slug": model["id"], "display_name": model["id"]} for model in data]
    return {"object": "list", "data": data, "models": codex}


async def model(server: "Server", call: Call) -> Reply:
    """One model."""
    name = call.scope["path_params"]["name"]
    known = server.models.known.get(name)
    if known is None:
        raise ApiError(404, f"no model {name[:100]!r}", param="model", code="model_not_found")
    return _model(server, known)


async def lm_studio_models(server: "Server", call: Call) -> Reply:
    """All models, as LM Studio's clients ask for them."""
    data = []
    for known in server.models.known.values():
        held = server.models.held.get(known.name)
        about: dict[str, Any] = {
            "id": known.name,
            "object": "model",
            "type": "llm",
            "state": "loaded" if held else "not-loaded",
        }
        about |= {"arch": known.architecture, "max_context_length": known.trained_context}
        data.append(about | ({"loaded_context_length": held.engine.context} if held else {}))
    return {"object": "list", "data": data}


async def props(server: "Server", call: Call) -> Reply:
    """The first model's name and limits."""
    known = server.models.find(None)
    held = server.models.held.get(known.name)
    template = held.engine.tokenizer.chat_template if held else None
    return {
        "model_alias": known.name,
        "build_info": f"hotset {__version__}",
        "default_generation_settings": {
            "n_ctx": held.engine.context if held else known.trained_context,
            "params": {"temperature": TEMPERATURE, "top_p": TOP_P},
        },
        "chat_template": template.source if template else None,
        "modalities": {"vision": False, "audio": False},
    }


async def tokenize(server: "Server", call: Call) -> Reply:
    """A text's token ids, with their texts where asked for."""
    fields = fields_of(call)
    content = fields.need_text("content")
    special, parse = fields.flag("add_special"), fields.flag("parse_special", True)
    pieces = fields.flag("with_pieces")
    tokenizer = (await server.hold(call, fields.text("model"))).engine.tokenizer
    ids = await asyncio.to_thread(tokenizer.encode, content, add_special=special, parse_special=parse)
    if not pieces:
        return {"tokens": ids}
    return {"tokens": [{"id": id, "piece": _piece(tokenizer.token_bytes(id))} for id in ids]}


def _piece(text: bytes) -> str | list[int]:
    try:
        return text.decode()
    except UnicodeDecodeError:
        return list(text)


async def detokenize(server: "Server", call: Call) -> Reply:
    """The text of token ids."""
    fields = fields_of(call)
    ids = fields.list("tokens")
    if ids is None or not all(map(is_id, ids)):
        raise fields.wrong("tokens", "a list of token ids")
    tokenizer = (await server.hold(call, fields.text("model"))).engine.tokenizer
    return {"content": await asyncio.to_thread(tokenizer.decode, ids, skip_special=False)}


async def apply_template(server: "Server", call: Call) -> Reply:
    """A conversation as the model reads it."""
    fields = fields_of(call)
    conversation = Conversation(check_messages(fields), check_tools(fields), template_variables(fields))
    held = await server.hold(call, fields.text("model"))
    return {"prompt": await asyncio.to_thread(written, held.engine, conversation)}


ROUTES: list[tuple[str, str, Handler]] = [
    ("GET", "/health", health),
    ("GET", "/metrics", metrics),
    ("GET", "/v1/models", models),
    ("GET", "/models", models),
    ("GET", "/v1/models/{name:path}", model),
    ("GET", "/api/v0/models", lm_studio_models),
    ("GET", "/props", props),
    ("POST", "/tokenize", tokenize),
    ("POST", "/detokenize", detokenize),
    ("POST", "/apply-template", apply_template),
]
