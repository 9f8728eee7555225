"""Draw book/assets/hero.png for the README: training images, what the model returns for their prompts,
and what its twin returns from the same noise.

    python scripts/hero.py      after `make book`, whose images it reads back; else it samples them
"""

from __future__ import annotations

import sys
from pathlib import Path

from dori import plots
from dori.errors import DoriError
from dori.experiments import replication
from dori.study import open_study

ROOT = Path(__file__).resolve().parents[1]
RUN = ROOT / "_build" / "runs" / "01_replication" / "quick"
COLUMNS = 8


def main() -> int:
    """Write the picture; exit code 2 with one line where the testbed is missing."""
    try:
        study = open_study(preset="quick", run_dir=RUN)
        rows = replication.twin_rows(study, COLUMNS)
    except DoriError as error:
        print(f"hero: {error}", file=sys.stderr)
        return 2
    target = ROOT / "book" / "assets" / "hero.png"
    plots.image_rows(rows).savefig(target, dpi=110, bbox_inches="tight", facecolor="white")
    print(f"{target}: {target.stat().st_size // 1024} KB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
