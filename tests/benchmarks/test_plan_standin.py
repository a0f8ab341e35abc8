"""Placements that plans are held against; the benchmark itself takes minutes and a quiet machine."""

import numpy as np
import plan_standin
import pytest
from helpers.random_checkpoint import mixture, random_checkpoint
from hybrid.test_hybrid_experts import EXPERTS

from hotset.backends.cpu import CpuBackend
from hotset.placing.sizes import model_parts


def test_random_placements_fit_and_name_the_hottest_experts() -> None:
    checkpoint = mixture(random_checkpoint(ffn_size=256), [EXPERTS, None])
    frequency = plan_standin.selected(checkpoint, CpuBackend(threads=1))
    assert frequency[0, : EXPERTS.count].sum() == pytest.approx(EXPERTS.used)
    parts = model_parts(checkpoint, [frequency[0, : EXPERTS.count], np.ones(256)])
    rng, placements = np.random.default_rng(0), []
    for _ in range(20):
        placements.append(plan_standin.random_placement(checkpoint, parts, rng))
        first, second = placements[-1].layers
        assert placements[-1].fits(checkpoint.config)
        assert first.experts == tuple(np.argsort(-frequency[0, : EXPERTS.count], kind="stable")[: first.hot])
        assert second.experts is None and second.hot % 64 == 0
    assert len(set(placements)) > 15
