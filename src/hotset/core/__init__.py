"""Nouns without code: errors, what a model is in numbers, how it is placed."""
