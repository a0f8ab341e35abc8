"""The shapes that are planned for machines of which only figures are at hand."""

import numpy as np
import plan_published
import pytest
from plan_published import LEFT_TO_OTHERS, MODELS, WAYS, checkpoint, predict


@pytest.mark.parametrize(("model", "parameters"), [(MODELS[0], 41.3e9), (MODELS[1], 68.7e9)])
def test_shapes_have_the_models_sizes(model: plan_published.Model, parameters: float) -> None:
    tensors = checkpoint(model, WAYS["dense"]).tensors
    weights = sum(np.prod(t.shape) for name, t in tensors.items() if ".fc" not in name)
    assert weights == pytest.approx(parameters, rel=0.01)
    share = sum(np.prod(t.shape) for name, t in tensors.items() if ".fc" in name) / weights
    assert 0.049 < share < 0.087  # the paper's range


def test_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def flat(model: plan_published.Model) -> object:
        return np.full((model.config.n_layers, model.config.ffn_size), model.density)

    monkeypatch.setattr(plan_published, "frequency", flat)
    row = predict(MODELS[1], "rtx-2080-ti", "predictor")
    assert row["device_bytes"] <= row["budget_bytes"] == (11 << 30) - LEFT_TO_OTHERS
    assert row["fits_main_memory"] and row["published_tokens_per_second"] == "not published"
    assert 1 < row["predicted_tokens_per_second"] < 30
