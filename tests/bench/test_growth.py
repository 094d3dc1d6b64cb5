from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from bench import growth as bench_growth

pytestmark = pytest.mark.usefixtures("one_thread")


def test_slopes_are_the_exponents_of_power_laws_and_for_m_also_above_the_rank():
    n, d, m = [10, 20, 40], [100, 200, 400], [4, 8, 20, 40, 80]
    rows = [{"axis": "n", "value": v, "n": v, "sketch_seconds": v**2.5, "geometry_seconds": v**3.0} for v in n]
    rows += [{"axis": "d", "value": v, "n": 20, "sketch_seconds": 7.0, "geometry_seconds": 3.0 * v} for v in d]
    rows += [{"axis": "m", "value": v, "n": 20, "sketch_seconds": min(v, 20) ** 2.0, "geometry_seconds": 1.0}
             for v in m]  # fmt: skip
    found = bench_growth.slopes(pd.DataFrame(rows)).set_index("axis")
    assert found.index.tolist() == ["n", "d", "m", "m, above the rank"]
    assert found.loc["n"].tolist() == pytest.approx([2.5, 3.0])
    assert found.loc["d"].tolist() == pytest.approx([0.0, 1.0], abs=1e-12)
    assert 0 < found.loc["m", "sketch slope"] < 2
    assert found.loc["m, above the rank"].tolist() == pytest.approx([0.0, 0.0], abs=1e-12)


def test_growth_is_measured_along_each_axis_with_the_other_sizes_fixed(monkeypatch):
    monkeypatch.setattr(bench_growth, "MIN_SECONDS", 0.0)
    monkeypatch.setattr(bench_growth, "MIN_REPEATS", 1)
    growth = bench_growth.measure_growth(16)
    for axis, others in (("n", ["d"]), ("d", ["n", "m"]), ("m", ["n", "d"])):
        part = growth[growth["axis"] == axis]
        assert (part["value"] == part[axis]).all()
        assert len(part) >= 4
        assert part[others].nunique().eq(1).all()
    assert (growth[["sketch_seconds", "geometry_seconds"]] > 0).all(axis=None)
    # one geometry serves all sketches of its gradients
    assert growth.groupby(["n", "d"])["geometry_seconds"].nunique().eq(1).all()


def test_the_geometry_that_is_timed_has_a_power_law_spectrum_and_full_rank():
    geometry, _ = bench_growth._timed_geometry(30, 2000)
    assert geometry.rank == 30
    torch.testing.assert_close(geometry.vectors.norm(dim=1), torch.ones(30, dtype=torch.float64), rtol=0, atol=1e-6)
    assert geometry.eigenvalues[0] / geometry.eigenvalues[-1] > 10


def test_a_short_run_is_repeated_and_the_fastest_counts(monkeypatch):
    clock = iter(np.cumsum([0, 0.2, 0, 0.05, 0, 0.1, 0, 0.1]))
    monkeypatch.setattr(bench_growth.time, "perf_counter", lambda: next(clock))
    calls = []
    assert bench_growth._fastest(lambda: calls.append(1) or len(calls)) == (3, pytest.approx(0.05))
