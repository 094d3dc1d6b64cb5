"""Everything before the first sketch: model, queries, gradients, geometry, λ and m of the run.

Also what predictions need beyond it: a sample of columns, shared sides of TensorSketch.
"""
