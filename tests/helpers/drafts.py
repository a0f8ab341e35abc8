"""Drafts that do not depend on how busy the machine is."""

import pytest

from hotset.serve.scheduler import share


def draft_as_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verify as many drafted tokens as pays on a quiet machine, whatever steps take now."""
    monkeypatch.setattr("hotset.serve.runner.share", lambda chances, cost_ratio: share(chances))
