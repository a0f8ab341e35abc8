"""llama.cpp's route for editors that complete code: what stands between two texts."""

from typing import TYPE_CHECKING, Any

from hotset.server.answers import Answer, Piece
from hotset.server.ask import Ask, Gap, most_tokens, sampling
from hotset.server.call import Call, Handler, Reply, fields_of
from hotset.server.errors import ApiError, error_body
from hotset.server.fields import Fields
from hotset.server.generation import Generation
from hotset.server.streams import SSE, event, streamed

if TYPE_CHECKING:
    from hotset.server.app import Server

_MOST_FILES = 64


def read_ask(fields: Fields) -> Ask:
    """What a body asks for; ``prompt`` follows on the prefix."""
    given = fields.objects("input_extra")
    if len(given) > _MOST_FILES:
        raise fields.wrong("input_extra", f"at most {_MOST_FILES} files")
    files = [(file.text("filename") or "file", file.need_text("text")) for file in given]
    before = (fields.text("input_prefix") or "") + (fields.text("prompt") or "")
    return Ask(
        model=fields.text("model"),
        prompts=[Gap(before, fields.text("input_suffix") or "", files)],
        sampling=sampling(fields),
        max_tokens=1 if _only_read(fields) else most_tokens(fields, "n_predict", "max_tokens"),
        stop=fields.stops("stop"),
        stream=fields.flag("stream"),
    )


def _only_read(fields: Fields) -> bool:
    """Whether nothing is asked for: editors have a prompt read so before they need its answer."""
    return fields.integer("n_predict") == 0


async def infill(server: "Server", call: Call) -> Reply:
    """Fill in what stands between two texts."""
    fields = fields_of(call)
    ask = read_ask(fields)
    held = await server.hold(call, ask.model)
    generation = await server.generate(call, held, ask)
    form = _Form(held.known.name)
    if ask.stream and not _only_read(fields):
        return streamed(generation, form, server.limits.keep_alive)
    (answer,) = await generation.whole()
    last = form.last(generation)
    if _only_read(fields):
        return last | {"tokens_predicted": 0, "stop_type": "limit"}
    return last | {"content": answer.content}


class _Form:
    """A stream's events."""

    media_type = SSE
    alive = b":\n\n"

    def __init__(self, model: str) -> None:
        self._model = model

    def begin(self, generation: Generation) -> bytes:
        """Nothing."""
        return b""

    def news(self, answer: Answer, pieces: list[Piece]) -> bytes:
        """Pieces of the text."""
        return b"".join([event({"index": 0, "content": piece.text, "stop": False}) for piece in pieces])

    def end(self, generation: Generation) -> bytes:
        """Why it ended, and counts."""
        return event(self.last(generation))

    def failed(self, error: ApiError) -> bytes:
        """An error."""
        return event(error_body("", error))

    def last(self, generation: Generation) -> dict[str, Any]:
        """What an answer ends with."""
        answer, usage = generation.answers[0], generation.usage
        word = answer.stop or ""
        return {
            "index": 0,
            "content": "",
            "stop": True,
            "model": self._model,
            "tokens_predicted": usage.answer,
            "tokens_evaluated": usage.prompt,
            "tokens_cached": usage.cached,
            "truncated": False,
            "stop_type": "limit" if answer.finish_reason == "length" else "word" if word else "eos",
            "stopping_word": word,
        }


ROUTES: list[tuple[str, str, Handler]] = [("POST", "/infill", infill)]
