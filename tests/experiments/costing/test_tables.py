from __future__ import annotations

import pandas as pd
import pytest

from common.experiments.costing import tables
from common.experiments.costing.runs import read_runs
from tests.experiments.costing.cases import RIDGES, write_run


@pytest.fixture
def runs(tmp_path):
    return read_runs(
        [
            write_run(tmp_path / "normal"),
            write_run(tmp_path / "sjlt", {"ms": [8, 16], "mean_stable_rank": 1.5}, proj_type="sjlt"),
            write_run(tmp_path / "lds", {"experiment": "hyperparam_selection", "ms": [8]}),
        ]
    )


def costs(*sizes: tuple[str, int]) -> pd.DataFrame:
    rows = [{"proj_type": law, "m": m, "numbers": m, "seconds": 10.0 * m} for law, m in sizes]
    columns = {"seconds_a_call": 1.0, "seconds_a_sample": 2.0, "added_memory_bytes": 3}
    return pd.DataFrame(rows).assign(**columns)


def test_every_timed_size_has_its_errors_and_what_lds_there_is(runs):
    table = tables.join(runs, costs(("normal", 8), ("sjlt", 8), ("sjlt", 16)))
    assert list(zip(table["proj_type"], table["m"], table["lambda"], strict=True)) == [
        (law, m, ridge) for law, m in (("normal", 8), ("sjlt", 8), ("sjlt", 16)) for ridge in RIDGES
    ]
    assert table["eps_95"].to_list() == pytest.approx([1 / m + r for m in (8, 8, 16) for r in RIDGES])
    assert table["seconds"].to_list() == [80, 80, 80, 80, 160, 160]
    assert table["test_lds"].head(2).to_list() == pytest.approx([8 * r for r in RIDGES])
    assert table["test_lds"].tail(4).isna().all()


def test_without_a_run_of_usefulness_lds_is_empty_and_errors_are_numbers(runs):
    table = tables.join(runs[:2], costs(("normal", 8)))
    assert table["test_lds"].isna().all()
    assert table["eps_95"].dtype == float


def test_ridges_that_differ_by_rounding_are_one(tmp_path):
    """λ in units of the mean eigenvalue, which every run has rounded by itself."""
    folders = [
        write_run(tmp_path / "normal"),
        write_run(tmp_path / "sjlt", proj_type="sjlt"),
        write_run(tmp_path / "lds", {"experiment": "hyperparam_selection"}),
    ]
    for folder, factor in zip(folders[1:], (1 + 1e-13, 1 - 1e-8), strict=True):
        summary = pd.read_csv(folder / "summary.csv")
        summary.assign(**{"lambda": summary["lambda"] * factor}).to_csv(folder / "summary.csv", index=False)
    table = tables.join(read_runs(folders), costs(("normal", 8), ("sjlt", 8)))
    assert table["lambda"].nunique() == 2
    assert table["lambda"].to_list() == pytest.approx([*RIDGES, *RIDGES], rel=1e-7)
    assert table["test_lds"].head(2).notna().all()


def test_runs_of_which_nothing_is_in_the_table_are_named(tmp_path):
    runs = read_runs(
        [
            write_run(tmp_path / "normal"),
            write_run(tmp_path / "small", {"ms": [2, 3]}, proj_type="rademacher"),
            write_run(tmp_path / "lds", {"experiment": "hyperparam_selection"}, proj_type="sjlt"),
        ]
    )
    lines = tables.describe_left_out(runs, tables.join(runs, costs(("normal", 4), ("normal", 8), ("sjlt", 8))))
    assert lines == [
        f"{tmp_path / 'small'}: left out, none of its m is timed: 2, 3",
        f"{tmp_path / 'lds'}: left out, no error of sjlt is known at the m and λ of its LDS",
    ]


def test_the_stable_rank_is_that_of_the_run_that_knows_it(runs):
    assert tables.mean_stable_rank(runs) == 1.5
    assert tables.mean_stable_rank(runs[:1]) is None
