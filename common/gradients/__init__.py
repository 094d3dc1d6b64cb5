"""Per-sample gradients of a workload's model: which to compute, by which route, stored or recomputed at every use.

Also the Gram matrix that all further work starts from, and the cache of earlier runs with what it was made of.
Nothing is projected or decomposed here; that is common/sketches/.
"""
