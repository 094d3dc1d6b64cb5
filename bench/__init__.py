"""What bench.py is made of: the routes it times, growth with n, d and m, its tables and its figure.

A route is ours or an obvious other one, another library's where it is installed, that must agree with ours.
Nothing in common/ imports from here; seconds beside the errors of finished runs are common/experiments/costing/.
"""

MIN_M = 16
"""Smallest projection dimension of the sweep."""
