"""The server on several machines: an app of Ray Serve, whose replicas have a model each.

::

    serve run hotset.cluster.serving:app model=/models/m.gguf replicas=2
"""

from collections.abc import Mapping

from ray import serve
from starlette.applications import Starlette

from hotset.core.errors import RequestError
from hotset.serve.engine import QUEUE, Engine
from hotset.serve.room import PARALLEL
from hotset.server.app import Server, make_app
from hotset.server.models import Known, Models

_NUMBERS = {"replicas": 1, "threads": 0, "parallel": PARALLEL}
_TEXTS = {"model": "", "name": "", "api_key": ""}


def app(given: Mapping[str, str]) -> serve.Application:
    """The app; see `docs/guide/cluster.md` for what may be given. Raises `RequestError` for anything else."""
    names = (*_TEXTS, *_NUMBERS, "context")
    if unknown := set(given) - {*names}:
        raise RequestError(f"{min(unknown)}: expected {', '.join(names)}")
    texts = {**_TEXTS, **{key: str(given[key]) for key in _TEXTS if key in given}}
    try:
        numbers = {key: int(given.get(key, default)) for key, default in _NUMBERS.items()}
        context = int(given["context"]) if "context" in given else None
    except ValueError as error:
        raise RequestError(f"expected an integer: {error}") from None
    source = texts["model"] or None
    name = texts["name"] or (source or "demo").rsplit("/", 1)[-1].removesuffix(".gguf")

    def build() -> Starlette:
        engine = Engine.load(
            source,
            threads=numbers["threads"] or None,
            context=context,
            parallel=numbers["parallel"],
        )
        known = Known(name, source, trained_context=engine.model.config.context_length)
        keys = [texts["api_key"]] if texts["api_key"] else []
        return make_app(Server(Models([known], lambda known: engine)), keys=keys)

    deployment = serve.deployment(
        name="hotset",
        num_replicas=numbers["replicas"],
        max_ongoing_requests=numbers["parallel"] + QUEUE,  # more wait where a replica may still become free
        ray_actor_options={"num_cpus": numbers["threads"] or 1},
    )
    return deployment(serve.ingress(build)()).bind()
