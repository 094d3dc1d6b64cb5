from __future__ import annotations

import math

import pandas as pd
import pytest

from bench.tables import check_agreement, join, readable
from common.foundations.errors import UserError


def sweep(eps=(0.30, 0.31, 0.29), noise=0.02):
    routes = zip(("coordinates", "dattri", "stored matrix"), (0.1, 4.0, 2.0), eps, strict=True)
    return pd.DataFrame(
        {"what": "sweep", "route": route, "m": m, "seconds": seconds * m, "peak_memory_bytes": m * 10**8,
         "added_memory_bytes": m * 10**7, "eps_95": value, "reference_eps_95": 0.3, "noise_eps_95": noise}
        for route, seconds, value in routes for m in (16, 32)
    )  # fmt: skip


def preparation():
    rows = [("gradients", "layer by layer", 2.0), ("gradients", "one at a time", 5.0)]
    return pd.DataFrame(rows, columns=["what", "route", "seconds"]).assign(peak_memory_bytes=1, added_memory_bytes=1)


def test_every_row_has_its_ratio_to_our_route_of_the_same_m_or_step():
    table = join(sweep(), preparation()).set_index(["what", "route"])
    assert table.loc[("sweep", "dattri"), "ratio_to_ours"].tolist() == pytest.approx([40, 40])
    assert table.loc[("whole sweep", "dattri"), "seconds"].item() == pytest.approx(4.0 * 48)
    assert table.loc[("whole sweep", "stored matrix"), "ratio_to_ours"].item() == pytest.approx(20)
    assert table.loc[("whole sweep", "coordinates"), "peak_memory_bytes"].item() == 32 * 10**8
    assert table.loc[("gradients", "one at a time"), "ratio_to_ours"].item() == pytest.approx(2.5)


def test_the_text_shows_seconds_by_m_and_the_ratios_of_whole_routes():
    text = readable(join(sweep(), preparation()))
    first, second = text.split("\n\n")
    assert first.splitlines()[1].split() == ["route", "coordinates", "dattri", "stored", "matrix"]
    assert first.splitlines()[3].split() == ["16", "1.6", "64", "32"]
    dattri = next(line for line in second.splitlines() if "dattri" in line)
    assert "40" in dattri.split()
    assert "3.2" in dattri.split()


def test_routes_within_the_noise_pass_and_the_farthest_is_said(capsys):
    check_agreement(join(sweep(), preparation()))
    assert "coordinates 0.0, dattri 0.5, stored matrix 0.5" in capsys.readouterr().out


@pytest.mark.parametrize("eps", [0.45, 0.15, math.nan])
def test_a_route_beyond_the_noise_of_one_law_is_an_error(eps):
    with pytest.raises(UserError, match="ε_95 of dattri at m = 16"):
        check_agreement(join(sweep(eps=(0.30, eps, 0.3)), preparation()))
