"""What spectrum_bounds.py is made of: errors of sketched scores over m and λ, of single samples and of pairs.

Measured and predicted, with their noise, the share of a reference sketch, slopes and figures.
"""
