"""What every backend refuses: tensors of other shapes, and plans that an activation does not allow."""

from hotset.core.config import Activation, FFNPlan, Way
from hotset.core.errors import CheckpointError


def check_shape(name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Raise `CheckpointError` where a tensor has another shape."""
    if found != expected:
        raise CheckpointError(f"{name}: expected shape {list(expected)}, found {list(found)}")


def check_gate(name: str, activation: Activation, gate: object | None) -> None:
    """Raise `CheckpointError` where an activation works on a gate, and up (`name`) has none beside it."""
    if activation.gated_only and gate is None:
        raise CheckpointError(f"{name}: {activation.value} needs a gate, which this FFN has not")


def check_exact(name: str, activation: Activation, plan: FFNPlan) -> None:
    """Raise `CheckpointError` where a plan for down (`name`) leaves out zeros that there are not."""
    if plan.way is Way.EXACT and not activation.zero_producing:
        raise CheckpointError(f"{name}: exact: {activation.value} is never zero")
