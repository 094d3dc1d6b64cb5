"""What all scripts are made of, in rooms that import in one direction; the first lines of each say what belongs there.

Outside the rooms are only what must be set before torch is imported, and the name under which workload files import
their records.
"""

import os

# A waiting OpenMP thread that spins for long slows small operations many times on a busy machine; one that sleeps at
# once has to be woken for every one of them. 10,000 rounds are some ten microseconds.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
