"""What hyperparam_selection.py is made of: LDS over m and λ, measured, resampled and predicted, and their choice.

How near sketched scores are to exact ones is common/experiments/bounds/; the retrained models of the ground truth are
common/workloads/, the law of the LDS is common/theory/lds.py.
"""
