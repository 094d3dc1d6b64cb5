from __future__ import annotations

import pytest

from common.experiments.projecting import trial
from common.experiments.projecting.subject import prepare
from common.foundations.distributed import Ranks
from tests.experiments.projecting.cases import options

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_forecast_counts_the_calls_and_bytes_of_a_whole_store(tmp_path, monkeypatch):
    subject = prepare(options(tmp_path), Ranks())
    # a second a call, and a quarter of one a sample
    monkeypatch.setattr(trial, "_seconds", lambda subject, count: 1 + count / 4)
    found = trial.forecast(subject, 100)
    calls = 24 / 4 + 20 / 4
    assert found.seconds == pytest.approx(calls * 1 + 44 / 4)
    assert found.num_bytes == 44 * (8 * 4 + 8)
    assert "24 train + 20 test samples: about 22 s" in trial.describe(found, subject)


def test_a_trial_run_writes_nothing(tmp_path):
    subject = prepare(options(tmp_path), Ranks())
    before = sorted(tmp_path.rglob("*"))
    assert trial.forecast(subject, 3).seconds > 0
    assert sorted(tmp_path.rglob("*")) == before


def test_a_trial_of_one_sample_does_not_take_a_call_for_a_sample(tmp_path, monkeypatch):
    subject = prepare(options(tmp_path), Ranks())
    monkeypatch.setattr(trial, "_seconds", lambda subject, count: 1 + count / 4)
    assert trial.forecast(subject, 1).seconds == trial.forecast(subject, 100).seconds
