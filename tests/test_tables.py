"""What heads the names of a table is a word for readers."""

import pandas as pd

from dori.metrics.intervals import p_value
from dori.plots import printed
from dori.tables import readable


def test_names_that_code_gives_an_index_become_words():
    table = pd.DataFrame({"x": [1]}, index=pd.Index(["a"], name="label")).rename_axis(columns="target")
    shown = readable(table)
    assert (shown.index.name, shown.columns.name) == ("model", None)
    two = readable(pd.DataFrame({"x": [1], "steps": [2], "setting": ["s"]}).set_index(["setting", "steps"]))
    assert list(two.index.names) == ["pruning", "steps"]
    assert table.index.name == "label", "the table itself is left alone"


def test_a_p_has_one_form():
    assert [p_value(p) for p in (0.8, 0.0341, 0.001, 0.0004, float("nan"))] == [
        "0.800", "0.034", "0.001", "< 0.001", "–",
    ]  # fmt: skip


def test_a_caption_is_printed_without_spaces_before_commas():
    assert printed("postcard , dusk , sea , two red kites") == "postcard, dusk, sea, two red kites"
