"""A published mixture of experts is predicted near what was measured of it."""

import numpy as np
import plan_experts
import pytest


def test_the_shape_has_the_models_size() -> None:
    tensors = plan_experts.model().tensors
    total = sum(np.prod(tensor.shape) for tensor in tensors.values())
    assert total == pytest.approx(122e9, rel=0.03)
    experts = sum(np.prod(tensor.shape) for name, tensor in tensors.items() if "_exps" in name)
    assert total - experts * (1 - 8 / 256) == pytest.approx(10e9, rel=0.1)


def test_published_speeds_are_predicted_within_a_fifth() -> None:
    rows = plan_experts.predictions()
    compared = [row for row in rows if row["published_tokens_per_second"]]
    assert len(compared) == 3
    for row in compared:
        assert row["predicted_tokens_per_second"] == pytest.approx(
            row["published_tokens_per_second"], rel=0.2
        ), row["placement"]
    own = rows[-1]
    assert own["device_bytes"] <= 22.6e9
    assert own["predicted_tokens_per_second"] >= max(row["predicted_tokens_per_second"] for row in rows[:-1])
