"""From gradients to scores: orthonormal coordinates and eigenvalues (geometry), random projections, ridge solves.

Whatever is drawn at random or factored is here, the influence scores that come of it, and the cache of earlier runs.
What scores can be expected to be, without drawing anything, is common/theory/.
"""
