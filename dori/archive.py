"""Records of an earlier run in one zip file: measurements that come with the book, and how to pack them.

A member is a file of a run directory under its own name, `<stage>/<key>.json` or `.safetensors`, so `unzip`
into `records/` of a run directory gives that run back. What is measured on top of a record has its content in
its key: two files of a directory that hold different records of one name would each lose what stands on the
other's, so a record is in one file only (`pack`), and the first file by name counts (`Archive`).
"""

import hashlib
import json
import zipfile
from collections.abc import Container, Iterable, Iterator
from functools import cached_property
from pathlib import Path

from dori.errors import DoriError

LIGHT = 100  # rows through the UNet: a measurement that takes more is drawn the more seldom
TOUCHED = "touched.json"  # in a run directory: the records its last run asked for
SHIPPED = Path(__file__).resolve().parents[1] / "data" / "records"
EPOCH = (1980, 1, 1, 0, 0, 0)  # of every member: the same records make the same file


class Archive:
    """All `*.zip` of a directory, read only.

    A `share` of the members (0: none, 1: all) is kept back and so is measured again by whoever asks for it;
    which ones, `salt` decides; of those that take long it is fewer (`seldomness`). What is kept back is
    missing for `has`, `kept` still has it.
    """

    def __init__(self, directory: str | Path, *, share: float = 0.0, salt: str = "") -> None:
        self.directory, self.share, self.salt = Path(directory), share, salt
        if not self.directory.is_dir():
            raise DoriError(f"no directory of records at '{directory}'; use shipped, none or a directory")

    @cached_property
    def _members(self) -> dict[str, zipfile.ZipFile]:
        found = {}
        for path in sorted(self.directory.glob("*.zip")):
            try:
                archive = zipfile.ZipFile(path)
            except (OSError, zipfile.BadZipFile) as error:
                raise DoriError(
                    f"{path} cannot be read ({error}); fetch it again, or use records 'none'"
                ) from None
            found = dict.fromkeys(archive.namelist(), archive) | found
        return found

    def kept(self, name: str) -> bytes | None:
        """A member, None if it is missing."""
        archive = self._members.get(name)
        return archive.read(name) if archive else None

    def has(self, name: str, lot: str, passes: int = 0) -> bool:
        """Whether a member is there and its `lot` (what it is drawn by) is not kept back."""
        return name in self._members and not self.draws(lot, passes)

    def draws(self, lot: str, passes: int = 0) -> bool:
        """Whether this lot, of so many passes of the UNet, is one of those kept back.

        One that is would be with fewer passes, too.
        """
        number = int.from_bytes(hashlib.sha256(f"{self.salt}/{lot}".encode()).digest()[:6], "big")
        return number < self.share / seldomness(passes) * 2**48


def seldomness(passes: int) -> float:
    """By how much more seldom than an image a measurement of so many rows through the UNet is kept back.

    Those of `LIGHT` rows or more so cost the same in the long run, however long one takes.
    """
    return max(1.0, passes / LIGHT)


def open_archive(where: str | Path, *, share: float, salt: str) -> Archive | None:
    """`shipped` (data/records, None outside a checkout), `none`, or a directory. Raises DoriError."""
    if str(where) == "none" or (str(where) == "shipped" and not SHIPPED.is_dir()):
        return None
    return Archive(SHIPPED if str(where) == "shipped" else where, share=share, salt=salt)


def pack(run_dirs: Iterable[Path], out: Path, *, without: Container[str] = ()) -> int:
    """Write the records that the last runs in these directories asked for to one zip file; how many.

    Members named in `without` are left out. Run a chapter twice before: the second run asks for no more than
    what a run with all results needs. Raises DoriError for a directory without such a run, and for a record
    that is missing.
    """
    members = {name: path for name, path in _asked_for(run_dirs) if name not in without}
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix(".tmp")
    with zipfile.ZipFile(partial, "w") as archive:
        for name, path in sorted(members.items()):
            archive.writestr(zipfile.ZipInfo(name, EPOCH), path.read_bytes(), zipfile.ZIP_LZMA)
    partial.replace(out)
    return sum(name.endswith(".json") for name in members)


def _asked_for(run_dirs: Iterable[Path]) -> Iterator[tuple[str, Path]]:
    for run_dir in run_dirs:
        try:
            touched = json.loads((run_dir / TOUCHED).read_text())
        except (OSError, ValueError):
            raise DoriError(
                f"{run_dir} holds no finished run (no {TOUCHED}); run its chapter first"
            ) from None
        for name in touched:
            path = run_dir / "records" / f"{name}.json"
            if not path.is_file():
                raise DoriError(
                    f"{run_dir}: the record {name} is missing; run its chapter again with records none"
                )
            yield f"{name}.json", path
            if path.with_suffix(".safetensors").is_file():
                yield f"{name}.safetensors", path.with_suffix(".safetensors")
