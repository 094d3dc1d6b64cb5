"""What projection_cost.py is made of: options, the runs that are compared, the time of their projections, figure.

Errors and LDS are read from finished runs, never measured again; only seconds and memory are measured here, by the
trial runs of common/experiments/projecting/.
"""
