"""What project_gradients.py is made of: options, the model and the projection, ranges of a store, a trial run.

It decides which rank projects which samples, and in which order; projections themselves are common/sketches/, files and
their manifest common/stores/. Nothing of F is computed: that is done with a store by common/experiments/audit/.
"""
