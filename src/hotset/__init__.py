"""Hotset: large language models on a PC whose GPU is too small for them."""
