"""What experiments do with gradients that come as factors: the sketcher, and how many directions a gradient has."""

from __future__ import annotations

from torch import Tensor

from common.experiments.options.records import SketchOptions
from common.experiments.preparing.shared_sides import SidesReader
from common.gradients.kept_rows import Gradients
from common.gradients.layer_factors import LayerFactors, flat_parameters
from common.gradients.planning import GradientPlan
from common.gradients.stable_rank import mean_stable_rank
from common.sketches.basis import Basis
from common.sketches.factored import FactoredSketch
from common.sketches.geometry import Geometry
from common.sketches.kronecker import KroneckerSketch
from common.sketches.kronecker_sizes import sizes_rule
from common.sketches.sketchers import FactoredSketcher
from common.sketches.tensorsketch import TensorSketch, transform_length

NUM_RANKED = 16
"""Training samples whose stable rank is looked at."""


def factored_sketcher(
    options: SketchOptions, plan: GradientPlan, geometry: Geometry, vectors: Tensor, max_m: int
) -> FactoredSketcher:
    """Return the sketcher of a projection of factors, of (v, N) weights of the unit rows that are scored."""
    factors = _factors(plan)

    def make_sketch(trial: int) -> FactoredSketch:
        drawn = factors.parameters, max_m, options.seed, trial
        if options.proj_type == "tensorsketch":
            return TensorSketch(*drawn, plan.device)
        return KroneckerSketch(*drawn, sizes_rule(options.kronecker_ranks), plan.device)

    return FactoredSketcher(
        lambda: factors.batches(plan.examples, plan.batch_size, plan.device),
        make_sketch,
        geometry.norms,
        geometry.num_train,
        vectors,
        options.num_trials,
    )


def stable_rank(plan: GradientPlan) -> float | None:
    """Return the mean stable rank of the gradients of up to 16 training samples, see `mean_stable_rank`."""
    samples = plan.parts[0][1]
    chosen = samples.subset(slice(0, None, max(1, len(samples) // NUM_RANKED)))
    return mean_stable_rank(_factors(plan), chosen.subset(slice(NUM_RANKED)).to(plan.device))


def sides_reader(
    rows: Gradients, basis: Basis, geometry: Geometry, plan: GradientPlan, max_m: int, seed: int
) -> SidesReader:
    """Return what finds the pairs of columns that a TensorSketch keeps apart."""
    parameters = flat_parameters(plan.model)
    length = transform_length(parameters, max_m)
    return SidesReader(rows, basis, geometry.scored.query_rows, geometry.queries, parameters, length, seed)


def _factors(plan: GradientPlan) -> LayerFactors:
    return LayerFactors(plan.model, plan.workload.loss, plan.routes)
