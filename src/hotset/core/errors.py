"""The one exception that a user is meant to read: a single line that names the thing and the remedy."""


class HotsetError(Exception):
    """Something the user can correct: a file, a flag, a shape or a request.

    The message is one line that names the thing, what was expected and what was found, and the remedy. The
    command line prints it and exits with 2; a server answers with a 4xx.
    """


class CheckpointError(HotsetError):
    """A model file that cannot be read, or a model that cannot be run."""


class NoMemoryError(HotsetError, MemoryError):
    """No main memory for a sequence; there may be some once others are over."""


class RequestError(HotsetError):
    """A prompt or a sampling parameter that cannot be served, such as one longer than the context."""


class UnsupportedError(RequestError):
    """A request of a kind that this model does not serve; a server answers with a 501."""


class ConstraintError(RequestError):
    """A rule for an answer that cannot be kept, such as a JSON schema with a keyword that is not known."""


class BusyError(RequestError):
    """A request for which there is no room now; the same one may be served later."""


class ModelError(HotsetError):
    """The model failed at a request; it is no fault of the user's, and other requests go on."""
