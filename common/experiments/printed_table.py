"""Tables as people read them in a terminal."""

from __future__ import annotations

import numpy as np
import pandas as pd


def printed(table: pd.DataFrame, digits: int = 4) -> str:
    """Return the table in lines: floats with `digits` significant digits, a dash where there is nothing."""
    # pandas has a name of its own for what integer columns lack, and prints that whatever `na_rep` is
    table = table.astype({name: object for name in table if pd.api.types.is_extension_array_dtype(table[name].dtype)})
    table = table.where(table.notna(), np.nan)
    return table.to_string(index=False, float_format=lambda value: f"{value:.{digits}g}", na_rep="-")
