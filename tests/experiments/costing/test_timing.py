from __future__ import annotations

import pytest

from common.experiments.costing import timing


@pytest.mark.parametrize(
    ("seconds", "sizes"),
    [
        ((10.0, 0.01), [(1, 64), (1, 1000)]),  # 64 samples take less than drawing P
        ((0.5, 0.01), [(1, 64)]),
    ],
)
def test_a_whole_call_is_timed_where_samples_take_less_than_the_call(monkeypatch, seconds, sizes):
    asked = []

    def time_calls(subject, few, many, enough):
        asked.append((few, many))
        return seconds[0], seconds[1] * len(asked)

    monkeypatch.setattr(timing, "time_calls", time_calls)
    assert timing._call_and_sample(None, 64, 1000) == (seconds[0], seconds[1] * len(sizes))
    assert asked == sizes


def test_a_whole_call_is_timed_only_once(monkeypatch):
    asked = []
    monkeypatch.setattr(timing, "time_calls", lambda *sizes: asked.append(sizes) or (10.0, 0.01))
    timing._call_and_sample(None, 64, 64)
    assert len(asked) == 1
