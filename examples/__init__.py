"""Workloads of your own, to begin from, and stores of the built-in perceptron to audit."""
