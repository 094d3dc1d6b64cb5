import numpy as np
import pandas as pd

from common.experiments.printed_table import printed


def test_what_is_missing_is_a_dash_whatever_the_column_holds():
    table = pd.DataFrame(
        {
            "float": [1.23456, np.nan, 3e-9],
            "integer": pd.array([1, pd.NA, 222222], dtype="Int64"),
            "boolean": pd.array([True, pd.NA, False], dtype="boolean"),
            "text": ["x", None, "y"],
            "nothing": pd.array([pd.NA] * 3, dtype="Int64"),
        }
    )
    lines = [line.split() for line in printed(table).splitlines()]
    assert lines == [list(table), ["1.235", "1", "True", "x", "-"], ["-"] * 5, ["3e-09", "222222", "False", "y", "-"]]
    assert printed(table, digits=2).split()[5] == "1.2"
