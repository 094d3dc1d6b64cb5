"""What hyperparam_selection.py is made of: LDS over m and λ, measured, resampled and predicted, and their choice."""
