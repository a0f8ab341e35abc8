"""What Prometheus asks for at /metrics."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from hotset.server.models import Models

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counters of one server."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "hotset_requests", "Requests answered.", ["route", "status"], registry=registry
        )
        self._tokens = Counter(
            "hotset_tokens",
            "Tokens: of prompts, of these cached, of answers, of drafts of answers, of these accepted.",
            ["kind"],
            registry=registry,
        )
        self._first = Histogram(
            "hotset_first_token_seconds",
            "Seconds to an answer's first token.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._whole = Histogram(
            "hotset_request_seconds", "Seconds of a whole request.", buckets=_SECONDS, registry=registry
        )
        self._state = Gauge(
            "hotset_state", "Requests running and waiting, models in memory.", ["what"], registry=registry
        )

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count a request that is over."""
        self._requests.labels(route, str(status)).inc()
        self._whole.observe(seconds)

    def tokens(self, **kinds: int) -> None:
        """Count tokens by their kind."""
        for kind, count in kinds.items():
            self._tokens.labels(kind).inc(count)

    def first_token(self, seconds: float) -> None:
        """Count an answer that has begun, so many seconds after it was asked for."""
        self._first.observe(seconds)

    def text(self) -> bytes:
        """All of it, in Prometheus's form."""
        engines = [held.engine for held in self._models.held.values()]
        self._state.labels("running").set(sum(engine.running for engine in engines))
        self._state.labels("waiting").set(sum(engine.waiting for engine in engines))
        self._state.labels("models").set(len(engines))
        return generate_latest(self._registry)
