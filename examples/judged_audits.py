"""What audits of the built-in perceptron's stores say, judged by the exact spectrum of the same gradients.

python -m examples.perceptron_stores stores/perceptron
python -m examples.judged_audits stores/perceptron results/audit_projections/judged.csv

One row for every store and λ: d_λ as the store shows it, with its standard error, beside the exact one; the largest gap
of predicted ε_95 of self-influence over m = 64 .. 65,536 to the prediction from the exact spectrum; standard deviation
of z = (B̃ − B)/se over 1,000 training times 300 test samples and the share of |z| < 1.96; and, of the listed scores that
Holm's procedure calls significant, the share with the wrong sign. Empty where the store cannot see λ.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from common.experiments.audit.options import AuditOptions
from common.experiments.audit.reading import Audited, open_stores, read
from common.experiments.audit.scores import make_scorer
from common.experiments.audit.top_scores import top_scores
from common.sketches.basis import SampleBasis, basis_of_samples
from common.sketches.influence import exact_influence
from common.theory.self_influence import predict_self_influence
from common.theory.spectrum import ExactSpectrum, effective_dimension
from examples.perceptron_stores import KINDS, SIZES, perceptron_gradients

RIDGES = [10.0**exponent for exponent in range(-8, -1)]
# name of a column -> whether it is ridge corrected
GAPS = {"eps_95_gap": False, "corrected_eps_95_gap": True}
MS = [2**power for power in range(6, 17)]
NUM_TRAIN_SCORED, NUM_QUERIES_SCORED, TOP_K = 1000, 300, 20


@dataclass(frozen=True)
class Exact:
    """What the exact spectrum says at one λ."""

    ridge: float
    """λ."""
    d_lambda: float
    """d_λ."""
    eps_95: dict[str, Tensor]
    """Name of a column -> (sizes, 1) predicted ε_95, raw and ridge corrected."""
    scores: Tensor
    """(k, n) scores of the test samples."""


def main(stores: Path, table: Path) -> None:
    """Judge every store, and write the table."""
    workload, gradients = perceptron_gradients()
    basis = basis_of_samples(gradients.unit_gram(), gradients.norms, len(workload.train))
    exact = [exact_at(basis, ridge) for ridge in RIDGES]
    rows = []
    for kind in KINDS:
        for m in sorted(SIZES):
            audited = audit(stores / f"{kind}_{m}.npy", kind)
            rows += [{"store": f"{kind}_{m}", "lambda": at.ridge} | judge(audited, at) for at in exact]
    table.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(table, index=False)


def exact_at(basis: SampleBasis, ridge: float) -> Exact:
    """Return what the exact spectrum says at λ."""
    spectrum, queries = ExactSpectrum(basis.eigenvalues), basis.rows[basis.num_train :]
    eps_95 = {
        name: predict_self_influence(spectrum, queries, MS, [ridge], corrected).eps_95
        for name, corrected in GAPS.items()
    }
    actual = basis.rows * basis.norms[:, None]
    scores = exact_influence(basis.eigenvalues, actual[basis.num_train :], actual[: basis.num_train], ridge)
    return Exact(ridge, effective_dimension(spectrum, ridge).item(), eps_95, scores)


def audit(train: Path, kind: str) -> Audited:
    """Return what an audit with default options reads."""
    queries = train.with_name(f"{train.stem}_queries.npy")
    options = AuditOptions(
        train, queries, format=None, rows=None, module=None, norms=None, proj_type=kind, lambda_exp_min=None,
        lambda_exp_max=None, ridge=None, target_eps=0.1, top_k=TOP_K, ground_truth=(), val_ratio=0.5,
        write_scores=None, num_test_grads=500, seed=42,
    )  # fmt: skip
    return read(options, *open_stores(options), None)


def judge(audited: Audited, exact: Exact) -> dict[str, float]:
    """Return one row of the table but for its names."""
    grid, spectrum = torch.tensor([exact.ridge], dtype=torch.float64), audited.spectrum
    found = {"exact_d_lambda": exact.d_lambda}
    if exact.ridge < spectrum.smallest_ridge:
        return found
    found["d_lambda"] = effective_dimension(spectrum, exact.ridge).item()
    found["d_lambda_std_error"] = spectrum.effective_dimension_std_error(grid).item()
    for name, corrected in GAPS.items():
        seen = predict_self_influence(spectrum, audited.tabled_queries, MS, [exact.ridge], corrected).eps_95
        found[name] = np.nanmax((seen / exact.eps_95[name] - 1).abs().numpy())
    return found | judged_scores(audited, exact)


def judged_scores(audited: Audited, exact: Exact) -> dict[str, float]:
    """Return how far scores lie from the exact ones, in standard errors, and how often a significant sign is wrong."""
    scorer = make_scorer(audited, exact.ridge)
    top = top_scores(scorer, audited.store, audited.query_rows, TOP_K)
    top = top[top["significant"]]
    signs = exact.scores[as_index(top["query"]), as_index(top["row"])].sign().numpy()
    train = torch.from_numpy(np.load(audited.store.path)[:NUM_TRAIN_SCORED]).double()
    scores, errors = scorer.of(slice(0, NUM_QUERIES_SCORED)).scores(train)
    z = (scores - exact.scores[:NUM_QUERIES_SCORED, :NUM_TRAIN_SCORED]) / errors
    return {
        "z_std": z.std().item(),
        "coverage": (z.abs() < 1.96).double().mean().item(),
        "significant": len(top),
        "wrong_signs": float((signs != np.sign(top["score"])).mean()),
    }


def as_index(column: pd.Series) -> Tensor:
    """Return a column of row numbers as int64."""
    return torch.tensor(column.to_numpy())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Judge audits of the built-in perceptron's stores.")
    parser.add_argument("stores", type=Path, help="folder that examples.perceptron_stores has written")
    parser.add_argument("table", type=Path, help="CSV file to write")
    args = parser.parse_args()
    main(args.stores, args.table)
