"""The errors that callers of Hotset may catch, under a name that stays."""

from hotset.core.errors import CheckpointError, HotsetError, RequestError

__all__ = ["CheckpointError", "HotsetError", "RequestError"]
