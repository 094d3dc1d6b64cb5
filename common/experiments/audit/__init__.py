"""What audit_projections.py is made of: reading, tables, scores with error bars, LDS, units, trust, figure.

Everything is said from a store of projected gradients alone: no model, no workload, no full gradient.
"""
