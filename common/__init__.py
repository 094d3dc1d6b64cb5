"""What both experiments share."""

import os

# Waiting OpenMP threads that spin make small tensor operations many times slower on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
