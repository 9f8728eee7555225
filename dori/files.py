"""Files that are written whole or not at all."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from dori.errors import DoriError


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path` and move it there only when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, 0o644)  # mkstemp's 0600 would lock colleagues out of a shared run
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def writing(path: Path, *failures: type[Exception]) -> Iterator[None]:
    """Turn what a full disk makes of the block into one line; `failures`: what else the writer raises."""
    try:
        yield
    except (OSError, SafetensorError, *failures) as error:
        raise DoriError(
            f"cannot write {path} ({error}); what was written before is kept: make room, start again"
        ) from None


def write_json(path: Path, content: object) -> None:
    """Write JSON atomically, readable by people."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, default=str) + "\n")
