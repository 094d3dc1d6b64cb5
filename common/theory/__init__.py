"""Laws of sketched scores in closed form: no sketch is drawn, no gradient is seen.

F enters only through functions of a ridge (spectrum.py), so that the same laws serve exact and estimated spectra.
Imports nothing but common/foundations/; every formula has a slow reference in tests/theory/.
"""
