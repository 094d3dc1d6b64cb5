"""What faithfulness_utility.py is made of: errors of scores and their LDS in one sweep, and how the two go together."""
