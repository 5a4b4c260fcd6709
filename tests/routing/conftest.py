"""Scheduling without chance: a failure here is the same failure again."""

import pytest
import trio


@pytest.fixture(autouse=True)
def _one_schedule(monkeypatch):
    """Trio shuffles the tasks that are ready; a simulation takes them in a fixed order (design section 7)."""
    monkeypatch.setattr(trio._core._run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
    trio._core._run._r.seed(0)
