"""Workloads of the kinds that people have, one a file, each of which a wrong idea of layers and samples gets wrong."""
