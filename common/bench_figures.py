"""The picture of `bench.py`: seconds of one sketch against n, d and m."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from common.figures import STYLE, save_figure

LABELS = {"n": "training samples n", "d": "parameters d", "m": "projection dimension m"}


def draw_growth(folder: Path, growth: pd.DataFrame) -> None:
    """Write figure.png and figure.pdf from the table of bench_routes.measure_growth."""
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained", sharey=True)
        for axes, (axis, label) in zip(panels, LABELS.items(), strict=True):
            part = growth[growth["axis"] == axis]
            axes.plot(part["value"], part["seconds"], "o-", color="#0072B2")
            axes.set(xscale="log", yscale="log", xlabel=label)
        panels[0].set_ylabel("seconds, one sketch and 6 λ")
        figure.suptitle("Time of one Gaussian coordinate sketch with scores for all λ")
        save_figure(figure, folder)
