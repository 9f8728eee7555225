"""Commands of `dori` one after the other, in one process: python in_turn.py FILE.

The file holds a JSON list of their words. A group of processes takes many seconds to start and can so run
several.
"""

import json
import sys
from pathlib import Path

from dori import parallel
from dori.cli import main

leave = parallel.leave
parallel.leave = lambda: None  # as a command leaves the group when it ends
codes = [main(words) for words in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))]
leave()
sys.exit(max(codes))
