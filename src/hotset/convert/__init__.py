"""Writes models: by neuron, or with fewer bits."""
