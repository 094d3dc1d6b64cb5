"""What faithfulness_utility.py is made of: errors of scores and their LDS in one sweep, and how the two go together.

Both are measured and predicted as in common/experiments/bounds/ and common/experiments/lds/; only what needs both of
one sketch is here: the verdict whether useful λ and m are faithful ones, and its picture.
"""
