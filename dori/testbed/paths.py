"""Where the bundled testbed lives."""

from pathlib import Path

TESTBED = Path(__file__).resolve().parents[2] / "data" / "testbed"
