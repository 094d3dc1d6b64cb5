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
from common.theory.self_influence import predict_self_influence
from common.theory.spectrum import ExactSpectrum
from examples.perceptron_stores import KINDS, SIZES, perceptron_gradients

RIDGES = [10.0**exponent for exponent in range(-8, -1)]
MS = [2**power for power in range(6, 17)]
NUM_TRAIN_SCORED, NUM_QUERIES_SCORED, TOP_K = 1000, 300, 20


def main(stores: Path, table: Path) -> None:
    """Judge every store, and write the table."""
    workload, gradients = perceptron_gradients()
    exact = basis_of_samples(gradients.unit_gram(), gradients.norms, len(workload.train))
    rows = []
    for kind in KINDS:
        for m in sorted(SIZES):
            audited = audit(stores / f"{kind}_{m}.npy", kind)
            rows += [{"store": f"{kind}_{m}", "lambda": ridge} | judge(audited, exact, ridge) for ridge in RIDGES]
    table.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(table, index=False)


def audit(train: Path, kind: str) -> Audited:
    """Return what an audit with default options reads."""
    queries = train.with_name(f"{train.stem}_queries.npy")
    options = AuditOptions(
        train, queries, format=None, rows=None, module=None, norms=None, proj_type=kind, lambda_exp_min=None,
        lambda_exp_max=None, ridge=None, target_eps=0.1, top_k=TOP_K, ground_truth=(), val_ratio=0.5,
        write_scores=None, num_test_grads=500, seed=42,
    )  # fmt: skip
    return read(options, *open_stores(options), None)


def judge(audited: Audited, exact: SampleBasis, ridge: float) -> dict[str, float]:
    """Return one row of the table but for its names."""
    grid = torch.tensor([ridge], dtype=torch.float64)
    spectrum = ExactSpectrum(exact.eigenvalues)
    found = {"exact_d_lambda": spectrum.sums(grid).first.item()}
    if ridge < audited.spectrum.smallest_ridge:
        return found
    found["d_lambda"] = audited.spectrum.sums(grid).first.item()
    found["d_lambda_std_error"] = audited.spectrum.effective_dimension_std_error(grid).item()
    for name, corrected in (("eps_95_gap", False), ("corrected_eps_95_gap", True)):
        wanted = predict_self_influence(spectrum, exact.rows[exact.num_train :], MS, [ridge], corrected).eps_95
        seen = predict_self_influence(audited.spectrum, audited.tabled_queries, MS, [ridge], corrected).eps_95
        found[name] = np.nanmax((seen / wanted - 1).abs().numpy())
    return found | judged_scores(audited, exact, ridge)


def judged_scores(audited: Audited, exact: SampleBasis, ridge: float) -> dict[str, float]:
    """Return how far scores lie from the exact ones, in standard errors, and how often a significant sign is wrong."""
    actual = exact.rows * exact.norms[:, None]
    truth = (actual[exact.num_train :] / (exact.eigenvalues + ridge)) @ actual[: exact.num_train].T
    scorer = make_scorer(audited, ridge)
    top = top_scores(scorer, audited.store, audited.query_rows, TOP_K)
    top = top[top["significant"]]
    signs = truth[as_index(top["query"]), as_index(top["row"])].sign().numpy()
    train = torch.from_numpy(np.load(audited.store.path)[:NUM_TRAIN_SCORED]).double()
    scores, errors = scorer.of(slice(0, NUM_QUERIES_SCORED)).scores(train)
    z = (scores - truth[:NUM_QUERIES_SCORED, :NUM_TRAIN_SCORED]) / errors
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
