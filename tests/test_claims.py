"""The rules of data/expected.yml decide, and say so where they cannot."""

import pytest

from dori.claims import claims_table, load_claims
from dori.errors import DoriError

ROW = """
- chapter: "01"
  id: top
  claim: memorized prompts replicate
  paper: {value: 0.98, source: table 1}
  rule: {metric: mr, op: ">=", value: 0.95}
  preset: quick
"""


@pytest.fixture
def expected(tmp_path):
    (tmp_path / "expected.yml").write_text(ROW)
    return tmp_path / "expected.yml"


def figure(value, preset="quick"):
    return {"mr": {"value": value, "low": 0.9, "high": 1.0, "n": 32, "preset": preset}}


@pytest.mark.parametrize(
    ("figures", "verdict"),
    [
        (figure(0.95), "replicates"),
        (figure(0.94), "does not replicate"),
        (figure(1.0, "smoke"), "not measured"),
        (figure(None), "not measured"),
        ({}, "not measured"),
    ],
)
def test_a_rule_decides(expected, figures, verdict):
    assert claims_table("01", figures, expected)["verdict"].tolist() == [verdict]


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
