"""What every room stands on: errors for users, files that appear whole, seeds, progress, ranks of torchrun, names.

Knows nothing of models, gradients or experiments, and imports nothing else of common/.
Apart from it, mathematics lives where its subject does.
"""
