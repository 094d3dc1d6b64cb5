"""What factorized_influence.py is made of: scores by K-FAC and EK-FAC, exact and sketched, their errors and LDS.

How the blocks of a model are factored and sketched is common/curvature/; here is the sweep over λ and m, and the table
that sets them beside scores of the full F. The LDS task is that of common/experiments/lds/.
"""
