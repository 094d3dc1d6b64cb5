"""The records of a user's own workload, under the name that workload files import them by."""

from __future__ import annotations

from common.workloads.records import Examples, GroundTruth, TrainingRecipe, Workload

__all__ = ["Examples", "GroundTruth", "TrainingRecipe", "Workload"]
