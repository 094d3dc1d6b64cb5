"""Per-sample gradients of a workload's model: which to compute, by which route, stored or recomputed at every use.

Also their Gram matrix, how rows are checked against plain autograd, and what decides their last bit (provenance).
Nothing is projected or decomposed here; that is common/sketches/.
"""
