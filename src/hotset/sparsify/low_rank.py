"""Low-rank predictors of a layer's gate: ``fc2 fc1 n``, or ``fc2 relu(fc1 n)``.

They start from the gate's singular value decomposition, weighted by how the input really lies, and are then
trained on captured activations with `torch`.
"""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from hotset.backends.contract import F32
from hotset.core.errors import HotsetError

_DAMPING = 1e-3
"""Of the mean second moment, added to each direction: none is thought to be empty."""


@dataclass(frozen=True)
class Factors:
    """``fc1`` (r, D) and ``fc2`` (F, r); the first components matter most."""

    fc1: F32
    fc2: F32

    def first(self, rank: int) -> "Factors":
        """The best factors of a smaller rank."""
        return Factors(
            np.ascontiguousarray(self.fc1[:rank]),
            np.ascontiguousarray(self.fc2[:, :rank]),
        )

    def rectified(self) -> "Factors":
        """The same function of twice the rank with a ReLU between: ``a = relu(a) - relu(-a)``."""
        return Factors(np.concatenate([self.fc1, -self.fc1]), np.concatenate([self.fc2, -self.fc2], axis=1))


def weighted_svd(weight: F32, n: F32) -> Factors:
    """Factors of full rank whose first r components best give ``weight n`` (F, D) over inputs n (T, D).

    Least squares over the inputs: with ``L L^T`` their second moment, the SVD of ``weight L`` (as in SVD-LLM,
    arXiv 2403.07378).
    """
    moment = n.T.astype(np.float64) @ n / len(n)
    moment += np.eye(len(moment)) * (_DAMPING * np.trace(moment) / len(moment))
    lower = np.linalg.cholesky(moment)
    product = weight.astype(np.float64) @ lower
    _, vectors = np.linalg.eigh(product.T @ product)
    vectors = vectors[:, ::-1]
    return Factors(
        np.ascontiguousarray(np.linalg.solve(lower.T, vectors).T.astype(np.float32)),
        np.ascontiguousarray((product @ vectors).astype(np.float32)),
    )


def fine_tune(
    start: Factors,
    n: F32,
    cost: F32,
    *,
    rectified: bool,
    price: float,
    epochs: int = 3,
    batch: int = 256,
    seed: int = 0,
) -> Factors:
    """Train factors so that neurons that cost much to miss score high, and the others low.

    n (T, D) are inputs, cost (T, F) what it costs to miss a neuron, as a share of its token's sum. A neuron
    scored ``s`` costs ``F cost softplus(-s/scale) + price softplus(s/scale)``: to read one of average cost is
    worth it where the price is under 1. Raises `HotsetError` without `torch`.
    """
    torch = import_torch()
    torch.manual_seed(seed)
    fc1 = torch.tensor(start.fc1, requires_grad=True)
    fc2 = torch.tensor(start.fc2, requires_grad=True)
    softplus = torch.nn.functional.softplus
    with torch.no_grad():
        sample = torch.from_numpy(n[:1024]) @ fc1.T
        scale = ((sample.relu() if rectified else sample) @ fc2.T).std().item() / 2
    optimiser = torch.optim.Adam(
        [{"params": [fc1], "lr": 0.003 * fc1.std().item()}, {"params": [fc2], "lr": 0.01 * fc2.std().item()}]
    )
    steps = epochs * (len(n) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, [group["lr"] * 3 for group in optimiser.param_groups], total_steps=max(steps, 1)
    )
    neurons = cost.shape[1]
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        order = rng.permutation(len(n))
        for at in range(0, len(n) - batch + 1, batch):
            rows = order[at : at + batch]
            hidden = torch.from_numpy(n[rows]) @ fc1.T
            scores = (hidden.relu() if rectified else hidden) @ fc2.T / scale
            weights = torch.from_numpy(cost[rows]) * neurons
            # weights * softplus(-scores) + price * softplus(scores), as softplus(s) = s + softplus(-s)
            loss = ((weights + price) * softplus(-scores) + price * scores).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return Factors(fc1.detach().numpy(), fc2.detach().numpy())


def import_torch() -> Any:
    """The `torch` module, or a line that says where to get it.

    Its threads sleep while they wait for one another: where other programs run too, spinning makes the many
    short products of training take a hundred times as long. OpenMP reads that once, before anything else.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        import torch
    except ImportError:
        raise HotsetError(
            "training predictors needs torch, which is not installed: pip install 'hotset[train]'"
        ) from None
    return torch
