from __future__ import annotations

import json
import subprocess
import sys

import pytest

# in a process of its own: what other threads of a long test run let go meanwhile would hide the work
MEASURE = """
import json
from common.foundations.memory import AddedMemory
big = b"1" * 2**26  # freed before the measurement begins
del big
memory = AddedMemory()
work = b"1" * 2**25
print(json.dumps(memory.bytes()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere only the peak of the whole process is known")
def test_memory_is_that_of_the_work_and_not_of_what_came_before():
    found = json.loads(subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, check=True).stdout)
    assert 2**25 * 0.9 < found["added_memory_bytes"] < 2**25 * 1.5
    assert found["peak_memory_bytes"] > found["added_memory_bytes"]
