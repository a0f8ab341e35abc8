"""Triton kernels: their bodies only. Grids and block sizes are chosen in `hotset.backends.gpu.launch`."""
