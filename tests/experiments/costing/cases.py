"""Folders of finished runs, written by hand: what config.json and summary.csv of a run have."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd

OPTIONS = {
    "dataset": "mnist", "model": "lr", "workload": None, "num_train": None, "epochs": None, "benchmark": "local",
    "proj_type": "normal", "seed": 42, "test_mode": "self", "predict_only": False, "scores": "self",
    "sjlt_sparsity": 1, "kronecker_ranks": None,
}  # fmt: skip
CONFIG = {
    "experiment": "spectrum_bounds", "finished": True, "ms": [4, 8], "n": 24, "d": 40, "data_fingerprint": "data",
    "checkpoint_fingerprint": "weights", "workload_checksum": None, "mean_stable_rank": None,
}  # fmt: skip
RIDGES = (1e-3, 1e-2)


def write_run(folder: Path, config: dict | None = None, **options) -> Path:
    """Write a run with ε_95 = 1/m + λ, or LDS = m λ, and return its folder."""
    folder.mkdir()
    made = CONFIG | {"options": OPTIONS | options} | (config or {})
    (folder / "config.json").write_text(json.dumps(made))
    rows = [{"m": m, "lambda": ridge, "d_lambda": 5 / ridge} for m in made["ms"] for ridge in RIDGES]
    table = pd.DataFrame(rows)
    if made["experiment"] == "spectrum_bounds":
        table = table.assign(eps_95=1 / table["m"] + table["lambda"], eps_95_noise=0.1, predicted_eps_95=0.2)
        table = table.assign(gaussian_equivalent_m=table["m"] - 0.5)
    else:
        table = table.assign(test_lds=table["m"] * table["lambda"], predicted_test_lds=0.3)
        exact = pd.DataFrame({"m": math.inf, "lambda": RIDGES, "d_lambda": 1.0, "test_lds": 0.9})
        table = pd.concat([table, exact])
    table.to_csv(folder / "summary.csv", index=False)
    return folder
