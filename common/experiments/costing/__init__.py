"""What projection_cost.py is made of: options, the runs that are compared, the time of their projections, figure."""
