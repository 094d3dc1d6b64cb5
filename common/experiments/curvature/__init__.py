"""What factorized_influence.py is made of: scores by K-FAC and EK-FAC, exact and sketched, their errors and LDS."""
