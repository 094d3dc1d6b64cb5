"""What bench.py is made of: the routes it times, growth with n, d and m, its tables and its figure."""

MIN_M = 16
"""Smallest projection dimension of the sweep."""
