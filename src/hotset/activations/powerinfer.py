"""Imports the profiles that come with PowerInfer's models: ``activation_{i}.pt``, a file a layer.

Each is a one-dimensional torch tensor with a number for each neuron, in the original model's order: how often
it fired, as a count or a share.
"""

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hotset.activations.profile import ActivationProfile, fingerprint
from hotset.core.errors import HotsetError
from hotset.formats.checkpoint import Checkpoint, refuse_mixture

_NAME = re.compile(r"activation_(\d+)\.pt")


def import_profile(directory: Path, checkpoint: Checkpoint, tokens: int | None = None) -> ActivationProfile:
    """The profile of a model from PowerInfer's files.

    `tokens` is what the counts were made on. Without it, the neuron that fired most is taken to have fired
    always: right for sorting and placing, too high as a density. Magnitudes and halves stay unknown. Raises
    `HotsetError` for what is missing, damaged or of another model, and where torch is not installed.
    """
    refuse_mixture(checkpoint, "make a profile with hotset profile --text")
    config = checkpoint.config
    counts = np.stack([_read(path, config.ffn_size) for path in _files(directory, config.n_layers)])
    most = counts.max()
    if most > 1:
        if tokens is not None and most > tokens:
            raise HotsetError(f"{directory}: a neuron fired {most:g} times, in {tokens} tokens (--tokens)")
        counts /= tokens or most
    return ActivationProfile(
        model=checkpoint.path.absolute().name,
        activation=config.activation,
        corpus=f"imported from {directory.resolve().name}",
        corpus_hash="",
        tokens=tokens or 0,
        window=0,
        skipped=0,
        fingerprint=fingerprint(checkpoint),
        levels=np.zeros(config.n_layers, np.float32),
        frequency=counts.astype(np.float32),
        magnitude=np.zeros(counts.shape, np.float32),
    )


def _files(directory: Path, n_layers: int) -> list[Path]:
    """A file for each layer, by its number: their names sort otherwise from layer 10 on."""
    try:
        found = {int(match[1]): path for path in directory.iterdir() if (match := _NAME.fullmatch(path.name))}
    except OSError as error:
        raise HotsetError(f"{directory}: cannot be read: {error.strerror}") from None
    if sorted(found) != list(range(n_layers)):
        missing = next((i for i in range(n_layers) if i not in found), None)
        what = f"has no activation_{missing}.pt" if missing is not None else f"has {len(found)} files"
        raise HotsetError(f"{directory} {what}: expected activation_0.pt to activation_{n_layers - 1}.pt")
    return [found[i] for i in range(n_layers)]


def _read(path: Path, neurons: int) -> NDArray[np.float64]:
    try:
        import torch
    except ImportError:
        raise HotsetError("PowerInfer's profiles need torch: pip install 'hotset[train]'") from None

    try:
        tensor = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises what it pleases
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise HotsetError(f"{path} is no torch tensor that can be read safely: {reason}") from None
    if not isinstance(tensor, torch.Tensor) or tuple(tensor.shape) != (neurons,):
        found = list(tensor.shape) if isinstance(tensor, torch.Tensor) else type(tensor).__name__
        raise HotsetError(f"{path}: expected a number for each of {neurons} neurons, found {found}")
    if tensor.is_complex():
        raise HotsetError(f"{path}: expected counts or frequencies, found complex numbers")
    try:
        # An `nn.Parameter` wants a gradient, and quantised and sparse tensors have no plain array of numbers.
        values: NDArray[np.float64] = tensor.detach().double().numpy().copy()
    except (RuntimeError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise HotsetError(
            f"{path}: expected counts or frequencies, found a tensor of others: {reason}"
        ) from None
    if not np.isfinite(values).all() or values.min() < 0:
        raise HotsetError(f"{path}: expected counts or frequencies, found negative or infinite numbers")
    return values
