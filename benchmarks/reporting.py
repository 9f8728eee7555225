"""What the benchmarks share: work in a process of its own."""

import json
import subprocess
import sys


def alone(script: str, *arguments: str) -> dict:
    """The record that a script prints when it runs with these arguments, in a process of its own."""
    command = [sys.executable, script, *arguments]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
