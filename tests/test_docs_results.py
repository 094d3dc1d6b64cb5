"""The tables of docs/results.md have the numbers of the files in results/."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from common.foundations.progress import without_exponent
from tests.documents import ROOT, committed_table, committed_text, read, sections, tables

RECOMMENDED = ("m", "m_ridge_corrected", "d_lambda_over_eps_squared")


def committed(command: str) -> Path:
    """Return the folder in results/ that a command of an experiment has made."""
    (folder,) = (
        path.parent
        for path in ROOT.glob("results/*/*/config.json")
        if f"python {json.loads(committed_text(path))['command']}" == command
    )
    return folder


def expected_cells(command: str) -> dict[str, str]:
    """Return header -> cell for the tables of docs/results.md, from the files in results/."""
    folder = committed(command)
    config = json.loads(committed_text(folder / "config.json"))
    seconds, memory = config["seconds"]["total"], config["peak_memory_bytes"] / 1e9
    cells = {"seconds": f"{seconds:.0f}", "peak memory": f"{memory:.1f} GB"}
    gaps = config["prediction_gaps"]
    if config["experiment"] == "spectrum_bounds":
        headers = {"median": "median", "worst": "worst", "noise there": "worst_noise"}
        shares = {name: f"{gaps[f'eps_95_gap_{key}']:.1%}".replace("%", " %") for name, key in headers.items()}
        beyond = f"{gaps['eps_95_gap_beyond_noise']} of {gaps['eps_95_gap_cells']}"
        return cells | shares | {"beyond 3 noises": beyond}
    choice = json.loads(committed_text(folder / "selection.json"))
    predicted = choice["predicted_choice"]
    return {
        "median": f"{gaps['test_lds_gap_median']:.4f}",
        "worst": f"{gaps['test_lds_gap_worst']:.4f}",
        "λ*": f"{choice['lambda_star']:g}",
        "d_λ*": f"{choice['d_lambda_star']:.0f}",
        "exact test LDS at λ*": f"{choice['exact_test_lds']:.3f}",
        "m_95": f"{choice['m_95']:,}",
        "m_95/d_λ*": f"{choice['c_95']:.0f}",
        "predicted choice (m, λ)": f"({predicted['m']:,}, {predicted['lambda']:g})" if predicted else "none",
    }


def test_tables_of_results_that_name_their_commands_have_the_numbers_of_the_committed_files():
    found = [table for table in tables(read("docs/results.md")) if "command" in table.header]
    assert len(found) == 3
    for row in (row for table in found for row in table.dicts()):
        expected = expected_cells(row.pop("command").strip("`"))
        row.pop("run", None)
        assert row == {name: expected[name] for name in row}


def test_the_table_of_recommended_m_is_that_of_the_committed_file():
    table = committed_table(committed("python spectrum_bounds.py") / "recommendation.csv")
    rows = [
        [f"1e{math.log10(row['lambda']):.0f}", f"{row['d_lambda']:.0f}", *(f"{row[name]:,.0f}" for name in RECOMMENDED)]
        for _, row in table.iterrows()
    ]
    assert tables(sections(read("docs/results.md"))["How large m must be"])[0].rows == rows


def test_what_stands_beside_published_numbers_is_that_of_the_committed_files():
    table, over_m = tables(sections(read("docs/results.md"))["Beside what is published"])
    folders = [committed(f"python hyperparam_selection.py{own}") for own in (" --model lr --proj_type sjlt", "")]
    chosen = [json.loads(committed_text(folder / "selection.json")) for folder in folders]
    ours = [[row[2], row[4]] for row in table.rows]
    assert ours[0] == [f"{choice['val_lds']:.3f}".lstrip("0") for choice in chosen]
    assert ours[1] == [f"{choice['lambda_star']:g}" for choice in chosen]
    assert ours[2] == [f"{choice['c_95']:.1f}" for choice in chosen]
    summary = committed_table(folders[0] / "summary.csv").set_index(["lambda", "m"])
    at_star = summary.loc[chosen[0]["lambda_star"], "val_lds"]
    ms = [float(m.replace(",", "")) for m in over_m.header[1:]]
    assert over_m.rows[1][1:] == [f"{at_star[m]:.3f}".lstrip("0") for m in ms]


def test_what_a_larger_ridge_gains_at_few_dimensions_is_that_of_the_committed_file():
    summary = committed_table(committed("python hyperparam_selection.py") / "summary.csv").set_index(["m", "lambda"])
    larger, star = (summary.loc[(128, ridge), ["val_lds", "test_lds"]] for ridge in (1e-3, 1e-5))
    words = "LDS {:.3f} and {:.3f}, where 1e-5, the λ* of the largest m, has {:.3f} and {:.3f}."
    assert words.format(*larger, *star) in one_line("docs/results.md")


def test_the_tables_of_speed_are_those_of_the_committed_files():
    table = committed_table(ROOT / "results" / "bench" / "bench.csv")
    whole, steps = tables(sections(read("docs/results.md"))["How fast"])
    sweep = table[table["what"] == "whole sweep"]
    for cells, (_, row) in zip(whole.rows, sweep.iterrows(), strict=True):
        seconds = f"{row.seconds:.3g}" if row.seconds > 1 else f"{row.seconds:.2f}"
        assert cells[1:] == [seconds, f"{row.ratio_to_ours:.0f}", f"{row.added_memory_bytes / 1e9:.2f} GB"]
    others = table[~table["what"].isin(["sweep", "whole sweep"]) & table["what"].duplicated()]
    for cells, (_, row) in zip(steps.rows, others.iterrows(), strict=True):
        assert [cells[0], cells[2], cells[3]] == [row.what, row.route, without_exponent(row.ratio_to_ours, 2)]


def test_the_table_of_growth_is_that_of_the_committed_file():
    slopes = committed_table(ROOT / "results" / "bench" / "slopes.csv").set_index("axis")
    (table,) = tables(sections(read("docs/results.md"))["How it grows"])
    # -0.0 + 0.0 is 0.0
    n, d, m, above = (round(slope, 1) + 0.0 for slope in slopes["sketch slope"])
    assert table.rows[0][1:] == [f"n^{n}", f"d^{d}", f"m^{m}", f"m^{above}"]
    n, d = (round(slope, 1) for slope in slopes["geometry slope"][:2])
    assert table.rows[1][1:] == [f"n^{n}", f"d^{d}", "", ""]


def test_what_the_ridge_correction_gains_is_that_of_the_committed_file():
    summary = committed_table(committed("python spectrum_bounds.py --ridge_correction") / "summary.csv")
    cells = summary.set_index(["m", "lambda"])[["eps_95", "corrected_eps_95"]]
    pairs = (cells.loc[(2048, 1e-8)], cells.loc[(1024, 1e-6)])
    first, second = (f"{raw:.3f} -> {corrected:.3f}" for raw, corrected in pairs)
    assert f"{first} at (m = 2048, λ = 1e-8), {second} at (1024, 1e-6)" in one_line("docs/results.md")


def test_the_numbers_of_the_readme_are_those_of_the_committed_files():
    readme = one_line("README.md")
    lr, mlp = (expected_cells(f"python hyperparam_selection.py{model}") for model in (" --model lr", ""))
    best, dimension, multiple = "exact test LDS at λ*", "d_λ*", "m_95/d_λ*"
    assert f"λ = {lr['λ*']} for a logistic regression (test LDS {lr[best]}, d_λ = {lr[dimension]})" in readme
    assert (
        f"λ = {float(mlp['λ*']):.0e} for the perceptron ({mlp[best]}, d_λ = {mlp[dimension]})".replace("e-0", "e-")
        in readme
    )
    assert f"m = {lr[multiple]} d_λ (logistic regression) and {mlp[multiple]} d_λ (perceptron)" in readme
    table = committed_table(committed("python spectrum_bounds.py") / "recommendation.csv").set_index("lambda")
    small, large = (table.loc[ridge] for ridge in (1e-8, 1e-4))
    gains = [f"{row.m_ridge_corrected:,.0f} instead of {row.m:,.0f}" for row in (small, large)]
    assert f"m = {gains[0]} at λ = 1e-8, and {gains[1]} at λ = 1e-4" in readme
    bounds = [f"{row.d_lambda_over_eps_squared:,.0f}" for row in (small, large)]
    assert f"({bounds[0]} and {bounds[1]} in these two cases)" in readme


def test_how_good_audits_are_is_as_in_the_committed_file():
    judged = committed_table(ROOT / "results" / "audit_projections" / "judged.csv")
    (table, _) = tables(sections(read("docs/audit.md"))["How good it is"])
    for row, (store, found) in zip(table.dicts(), judged.groupby("store", sort=False), strict=True):
        known = found.dropna(subset="d_lambda")
        kind, m = store.split("_")
        assert row["store"] == f"{kind}, M = {int(m):,}"
        assert row["λ"] == f"1e{math.log10(known['lambda'].min()):.0f} .. 1e-2"
        gap = (known["d_lambda"] / known["exact_d_lambda"] - 1).abs().max()
        shares = gap, known["eps_95_gap"].max(), known["corrected_eps_95_gap"].max(), known["wrong_signs"].max()
        names = "gap of d_λ", "of predicted ε_95", "ridge corrected", "wrong signs"
        assert [row[name] for name in names] == [f"{share:.2%}".replace("%", " %") for share in shares]
        for name, column in (("sd of z", "z_std"), ("95 % intervals cover", "coverage")):
            assert row[name] == f"{known[column].min():.3f} .. {known[column].max():.3f}"
    errors = (judged["d_lambda"] - judged["exact_d_lambda"]).abs() / judged["d_lambda_std_error"]
    assert f"further than {errors.max():.1f} of its standard errors" in one_line("docs/audit.md")


def one_line(page: str) -> str:
    return " ".join(read(page).split())


def test_the_table_of_projections_is_that_of_the_committed_files():
    (table, *_) = tables(sections(read("docs/results.md"))["Projections of factors"])
    commands = {
        "logistic regression": " --model lr",
        "perceptron": "",
        "ResNet9": " --dataset photos2 --model resnet9 --num_train 500",
        "MusicTransformer": " --dataset chorales --model musictransformer --num_train 200",
    }
    for row in table.dicts():
        model, m = row["model, m"].rsplit(", ", 1)
        for law in ("normal", "sjlt", "tensorsketch", "kronecker"):
            summary = committed_table(run_of(commands[model], law) / "summary.csv").set_index(["m", "lambda"])
            cell = summary.loc[(int(m.replace(",", "")), float(row["λ"]))]
            assert row["d_λ"] == f"{cell['d_lambda']:.0f}"
            bracket = "" if law == "normal" else f" ({cell['gaussian_equivalent_m']:,.0f})"
            assert row[law] == f"{cell['eps_95']:.3f}".lstrip("0") + bracket


@pytest.mark.parametrize(
    ("which", "run", "ridge"),
    [
        (1, "mnist_mlp_max_m_4096", 1e-2),
        (2, "mnist_lr", 10.0),
        (3, "chorales_musictransformer_max_m_1024_num_train_200", 100.0),
        (4, "photos2_resnet9_max_m_1024_num_train_500", 1e-2),
    ],
)
def test_the_tables_of_error_against_cost_are_those_of_the_committed_files(which, run, ridge):
    table = tables(sections(read("docs/results.md"))["Projections of factors"])[which]
    costs = committed_table(ROOT / "results" / "projection_cost" / run / "costs.csv")
    costs = costs[np.isclose(costs["lambda"], ridge)].set_index(["proj_type", "m"])
    for row in table.dicts():
        m = int(row.pop("m").replace(",", ""))
        for law, shown in row.items():
            seconds, error = map(float, shown.split(", "))
            cell = costs.loc[law, m]
            assert seconds == float(f"{cell['seconds']:.2g}")
            assert error == float(f"{cell['eps_95']:.3f}")


def run_of(model: str, law: str) -> Path:
    """Return the folder of a run of one model with one projection, whatever its largest m."""
    found = []
    for path in (ROOT / "results" / "spectrum_bounds").glob("*/config.json"):
        config = json.loads(committed_text(path))
        options = config["options"]
        words = config["command"].replace(f" --proj_type {law}", "").replace(" --max_m 4096", "")
        if options["proj_type"] == law and words == f"spectrum_bounds.py{model}":
            found.append((config["options"]["max_m"] is None, path.parent))
    return min(found)[1]  # with --max_m where there is one: that without is of another checkpoint
