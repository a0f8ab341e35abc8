"""Text from tokens as they come: a character is given out when its last byte has arrived."""

import codecs
from collections.abc import Callable


class StreamDecoder:
    """Decodes one generation, token by token; bytes that are not UTF-8 become U+FFFD.

    The texts that `push` and the final `flush` return add up to all the tokens' bytes decoded at once.
    Nothing is trimmed at the start, since a generation continues its prompt.
    """

    def __init__(self, visible_bytes: Callable[[int], bytes]) -> None:
        """``visible_bytes`` maps a token id to the bytes that it shows (none for a control token)."""
        self._visible_bytes = visible_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        """Add one token; return the characters that it completes, perhaps none."""
        return self._decoder.decode(self._visible_bytes(id))

    def flush(self) -> str:
        """End the generation: a character still incomplete is returned as U+FFFD."""
        return self._decoder.decode(b"", final=True)
