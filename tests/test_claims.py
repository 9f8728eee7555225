"""The rules of data/expected.yml decide, and say so where they cannot."""

import pytest

from dori.claims import claims_html, claims_table, load_claims
from dori.errors import DoriError

ROW = """
- chapter: "01"
  id: top
  claim: memorized prompts replicate
  paper: {value: 0.98, source: "paper, table 1"}
  rule: {metric: mr, op: ">=", value: 0.95}
  preset: quick
"""


@pytest.fixture
def expected(tmp_path):
    (tmp_path / "expected.yml").write_text(ROW)
    return tmp_path / "expected.yml"


def figure(value, preset="quick", low=0.9, high=1.0):
    return {"mr": {"value": value, "low": low, "high": high, "n": 32, "preset": preset}}


@pytest.mark.parametrize(
    ("figures", "verdict"),
    [
        (figure(0.95, low=0.95), "replicates"),
        (figure(0.95), "replicates; the interval crosses the rule"),
        (figure(0.94, high=0.94), "does not replicate"),
        (figure(1.0, "smoke"), "not measured"),
        (figure(None), "not measured"),
        ({}, "not measured"),
    ],
)
def test_a_rule_decides(expected, figures, verdict):
    assert claims_table("01", figures, expected)["verdict"].tolist() == [verdict]


def test_the_table_of_a_page_cuts_no_claim_and_no_small_figure(expected):
    long = "a claim of more than fifty characters, with the sign < in it, to its very end"
    expected.write_text(ROW.replace("memorized prompts replicate", long))
    shown = claims_html("01", figure(0.0004, low=0.00012), expected)
    assert long.replace("<", "&lt;") in shown
    assert "<td>0.0004 [0.0001, 1.0000]</td>" in shown
    assert "<td>0.98 (paper, table 1)</td>" in shown
    assert "<td>≥ 0.95</td>" in shown


def test_a_check_of_our_own_holds_and_replicates_nothing(expected):
    expected.write_text(ROW.replace('"paper, table 1"', "own"))
    assert claims_table("01", figure(1.0, low=0.96), expected)["verdict"].tolist() == ["holds"]
    assert claims_table("01", figure(0.1, high=0.2, low=0.0), expected)["verdict"].tolist() == [
        "does not hold"
    ]
    assert claims_table("01", {}, expected)["verdict"].tolist() == ["not measured"]


def test_the_papers_claims_are_told_from_our_own():
    ours = {claim.paper_source: claim.of_paper for claim in load_claims()}
    assert ours["own"] is False
    assert ours["own; the paper's conclusion, tested directly"] is False
    assert ours["paper says so without a figure at hand"] is True
    assert ours["paper, SD v1.4, ESD + DoRI (secondary notes)"] is True
    assert not any(ok for source, ok in ours.items() if source.startswith("Wen"))


def test_a_chapter_sees_its_own_claims(expected):
    assert claims_table("02", figure(1.0), expected).empty
    assert len(claims_table("01_replication", figure(1.0), expected)) == 1


@pytest.mark.parametrize(
    ("old", "new"), [('">="', '"~"'), ("metric: mr", "name: mr"), ("0.95", "high"), ("quick", "huge")]
)
def test_a_faulty_row_is_named(expected, old, new):
    expected.write_text(ROW.replace(old, new))
    with pytest.raises(DoriError, match="claim 1"):
        load_claims(expected)
