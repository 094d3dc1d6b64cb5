"""Stores of projected gradients, n x M: this project's own, and those of TRAK, bergson, dattri, LESS, LogIX, numpy.

One short file a format says where its rows lie (formats.py finds the right one); store.py reads them in pieces,
writer.py fills one of our own. Whatever is summed over the rows of a store in one pass is here too; what follows from
the sums is common/theory/.
"""
