"""Kronecker-factored curvature: the factors of every layer, their eigenbases, influence scores exact and sketched.

Works on the factors of gradients (common/gradients/layer_factors.py) block by block; full F is common/sketches/.
Effective dimensions and whatever else follows from eigenvalues alone are common/theory/kronecker.py.
"""
