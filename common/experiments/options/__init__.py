"""What is asked on a command line: parsers, values, what options exclude, and the frozen records that travel on.

An argument of one script alone is added in that script, or in options.py of its room. Nothing here needs torch, numpy
or pandas, so that a wrong option is named at once.
"""
