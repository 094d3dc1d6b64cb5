from __future__ import annotations

import pytest
import torch


@pytest.fixture
def drawn(monkeypatch):
    """Return a list that every call which draws random numbers adds their count to."""
    counts = []
    for name in ("randn", "randint"):
        draw = getattr(torch, name)
        monkeypatch.setattr(
            torch, name, lambda *a, draw=draw, **k: [out := draw(*a, **k), counts.append(out.numel())][0]
        )
    return counts
