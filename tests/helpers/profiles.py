"""Activation profiles that nothing was measured for."""

import numpy as np

from hotset.activations.profile import ActivationProfile, fingerprint, units_of
from hotset.formats import Checkpoint


def random_profile(checkpoint: Checkpoint, seed: int = 0, levels: int = 7) -> ActivationProfile:
    """Random frequencies of few levels, so that many are equal."""
    rng = np.random.default_rng(seed)
    shape = checkpoint.config.n_layers, checkpoint.config.profiled_units
    return ActivationProfile(
        model="random",
        activation=checkpoint.config.activation,
        corpus="none",
        corpus_hash="",
        tokens=10,
        window=5,
        skipped=0,
        fingerprint=fingerprint(checkpoint),
        levels=np.zeros(shape[0], np.float32),
        frequency=(rng.integers(0, levels, shape) / levels).astype(np.float32),
        magnitude=rng.integers(0, 3, shape).astype(np.float32),
        units=units_of(checkpoint.config),
    )
