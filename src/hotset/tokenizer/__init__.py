"""Text to token ids and back, from what a checkpoint carries. Knows nothing of models or sampling."""

from hotset.tokenizer.streaming import StreamDecoder
from hotset.tokenizer.tokenizer import Tokenizer

__all__ = ["StreamDecoder", "Tokenizer"]
