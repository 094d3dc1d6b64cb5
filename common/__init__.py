"""What both experiments share."""

import os

# A waiting OpenMP thread that spins for long slows small operations many times on a busy machine; one that sleeps at
# once has to be woken for every one of them. 10,000 rounds are some ten microseconds.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
