"""`python -m dori`, which is what `accelerate launch -m dori` starts."""

import sys

from dori.cli import main

sys.exit(main())
