"""What the entry scripts are made of: options, run folders, preparation, sweeps, measures of quality, choice, figures.

The only room that sees all others; it decides in which order they work and what is written where.
"""
