"""Stores of projected gradients, n x M, as TRAK, bergson, dattri, LESS, LogIX and plain files hold them on disk.

One short file a format says where its rows lie (formats.py finds the right one); store.py reads them in pieces.
Whatever is summed over the rows of a store in one pass is here too; what follows from the sums is common/theory/.
"""
