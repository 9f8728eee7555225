"""Chapter 4's figures show the figures they are given."""

import numpy as np
import pandas as pd
import pytest

from dori import plots

LONG = "ten times the steps"


@pytest.fixture
def asked() -> pd.DataFrame:
    """Two defences, two attackers; under "b" no image comes back, under "a" one at 10 and one at 50 steps."""
    rows = []
    for defence, returns in (("a", (10, 50, None)), ("b", (None, None, None))):
        for item, at in enumerate(returns):
            rows.append((item, 0, False, 0, defence, "prompt"))
            rows += [(item, 0, at is not None and at <= s, s, defence, LONG) for s in (10, 50, 100)]
    table = pd.DataFrame(rows, columns=["id", "seed", "replicated", "steps", "defence", "attacker"])
    return table.assign(score=table["replicated"] * 1.0)


def test_a_cell_has_the_rate_at_the_last_look(asked):
    axis = plots.defence_matrix(asked).axes[0]
    found = [text.get_text().splitlines()[0] for text in axis.texts]
    assert found == ["0.00", "0.67", "0.00", "0.00"]
    assert all("n = 3" in text.get_text() for text in axis.texts)
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b"]


def test_a_cell_that_was_not_asked_is_empty(asked):
    some = asked[~((asked["defence"] == "b") & (asked["attacker"] == LONG))]
    texts = [text.get_text() for text in plots.defence_matrix(some).axes[0].texts]
    assert len([t for t in texts if t]) == 3


def test_curves_are_the_share_that_came_back_and_crosses_count_the_rest(asked):
    axis = plots.work_curves(asked[asked["attacker"] == LONG]).axes[0]
    a, b = (np.asarray(line.get_ydata(), float) for line in axis.lines[:2])
    assert a == pytest.approx([1 / 3, 2 / 3, 2 / 3])
    assert b == pytest.approx([0, 0, 0])
    assert [t.get_text() for t in axis.texts if t.get_text().startswith("✕ ")] == ["✕ 1", "✕ 3"]
    assert [t.get_text() for t in axis.get_legend().get_texts()] == ["a (n = 3)", "b (n = 3)"]


def test_without_rows_the_figures_say_so(asked):
    for draw in (plots.defence_matrix, plots.work_curves):
        assert "not available" in draw(asked.head(0)).axes[0].texts[0].get_text()
