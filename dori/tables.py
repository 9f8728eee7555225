"""Tables for reading: what heads a column of names, in words and not as code calls it."""

import pandas as pd

HEADINGS = {  # names of an index as tables between stages have them -> as a reader sees them
    "sort": "prompts",
    "source": "images",
    "label": "model",
    "setting": "pruning",
    "group": "value neurons off",
    "set": "embeddings of",
    "target": "searched for",
    "start": "search from",
    "weights": "model",
}


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """`table` with its index's names as in `HEADINGS`, others as they are, and no name over its columns."""
    names = [HEADINGS.get(name, name) for name in table.index.names]
    return table.rename_axis(index=names if table.index.nlevels > 1 else names[0], columns=None)
