"""What a client is told when something is wrong: a status, and a body in the shape of its API."""

from typing import Any

from hotset.core.errors import BusyError, HotsetError, ModelError, UnsupportedError

_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    **dict.fromkeys((405, 408, 413, 431), "invalid_request_error"),
    501: "not_supported_error",
    503: "unavailable_error",
}
_ANTHROPIC_KINDS = {
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    501: "invalid_request_error",
    503: "overloaded_error",
}


class ApiError(Exception):
    """An answer that is an error; `param` names the field that is wrong, `code` the fault, for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str | None = None,
        retry: int | None = None,
        **facts: int,
    ) -> None:
        """`retry`: seconds after which the same request may be served; `facts` stand beside the message."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.kind = kind or _KINDS.get(status, "server_error")
        self.retry = retry
        self.facts = facts

    @property
    def headers(self) -> dict[str, str]:
        """What tells clients whether to try again: by themselves they repeat what fails each time."""
        if self.retry is not None:
            return {"retry-after": str(self.retry)}
        return {"x-should-retry": "false"} if self.status >= 500 else {}


def wrong(param: str, message: str) -> ApiError:
    """A field that cannot be served."""
    return ApiError(400, message, param=param)


def as_api_error(error: Exception) -> ApiError:
    """What a client is told of an exception."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, BusyError):
        return ApiError(503, str(error), retry=1)
    for kind, status in ((UnsupportedError, 501), (ModelError, 500), (HotsetError, 400)):
        if isinstance(error, kind):
            return ApiError(status, str(error))
    if isinstance(error, RecursionError):
        return ApiError(400, "the body is nested too deeply")
    if isinstance(error, MemoryError):
        return ApiError(503, f"no memory left: {error}", retry=10)
    return ApiError(500, f"the server failed: {type(error).__name__}")


def error_body(path: str, error: ApiError) -> dict[str, Any]:
    """The error in the shape of the API that a path belongs to."""
    if path.startswith("/api/") and not path.startswith("/api/v0"):
        return {"error": error.message}
    if path.startswith("/v1/messages"):
        kind = _ANTHROPIC_KINDS.get(error.status, error.kind)
        return {"type": "error", "error": {"type": kind, "message": error.message, **error.facts}}
    facts = {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}
    return {"error": facts | error.facts}
