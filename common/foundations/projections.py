"""Names of the laws of P, as command lines and manifests of stores write them."""

from __future__ import annotations

PROJECTIONS = ("normal", "rademacher", "sjlt", "tensorsketch", "kronecker")
"""Those that the project draws from."""
WITH_LAW = ("normal", "rademacher", "sjlt", "tensorsketch")
"""Those whose errors have a closed form in common/theory/; without one predictions are empty."""
