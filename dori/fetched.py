"""What is fetched from the web is kept: images by their content, and files whose sha256 was known before."""

import contextlib
import hashlib
import json
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from urllib.parse import urlsplit

from tqdm import tqdm
from urllib3 import PoolManager

from dori import parallel, web
from dori.errors import DoriError
from dori.images import check_image
from dori.store import atomic, write_json

HOSTS_AT_ONCE = 8  # files of one host come one after the other
ADDRESS = re.compile(r"https?://", re.I)
WITH_HASH = re.compile(r"(https://[^#]+)#sha256=([0-9a-f]{64})", re.I)
FILE_BYTES, FILE_SECONDS = 4_000_000_000, 3600.0  # of a network's file
_decoding = threading.Lock()  # one image at a time is unpacked, however many are on their way


def is_address(text: str) -> bool:
    """Whether this is a web address rather than a path."""
    return ADDRESS.match(text) is not None


def cache() -> Path:
    """Where fetched files are kept: $DORI_CACHE, else `dori` in the user's cache directory."""
    if own := os.environ.get("DORI_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dori"


def fetch_images(addresses: Iterable[str], *, again: bool = False) -> dict[str, Path | str]:
    """Each address with the image's file in the cache, or with the reason why there is none.

    An image is named by the sha256 of its content and checked by it. Refusals are remembered, too (a server
    that says no, an address or a file that is not wanted), so that a second run neither asks nor counts
    otherwise; `again` asks anew. Of several processes the first asks; what fails for one, fails for all.
    Raises DoriError if the cache cannot be written.
    """
    addresses = list(dict.fromkeys(addresses))
    if not addresses:
        return {}
    if parallel.first():
        found = _fetch_all(addresses, again=again)
    parallel.wait()
    if not parallel.first():  # from the cache, where it is a shared one
        found = _fetch_all(addresses, again=False)
    failed = {a: why for a, why in found.items() if isinstance(why, str)}
    return found | {a: why for part in parallel.gathered([failed]) for a, why in part.items()}


def fetch_file(address: str) -> Path:
    """The file at `https://…#sha256=…`, from the cache or fetched once. Raises DoriError."""
    known = WITH_HASH.fullmatch(address.strip())
    if not known:
        raise DoriError(
            f"{address[:200]}: give https://…#sha256=… with the 64 hex digits that `sha256sum` shows for a "
            "copy you trust"
        )
    url, wanted = known[1], known[2].lower()
    try:
        path = cache() / "files" / wanted / (Path(urlsplit(web.https(url)).path).name or "file")
        if path.is_file() and _sha256(path) == wanted:
            return path
        with _written(path), atomic(path) as temporary:
            got = web.download(url, temporary, limit=FILE_BYTES, seconds=FILE_SECONDS)
            if got != wanted:
                raise DoriError(f"{url}: its sha256 is {got}, not {wanted}; nothing of it was kept")
    except (web.Refused, web.Unreachable) as error:
        raise DoriError(f"{url} cannot be fetched: {error}") from None
    return path


def _fetch_all(addresses: list[str], *, again: bool) -> dict[str, Path | str]:
    """What lacks is asked for, several hosts at once, each host's files one after the other."""
    found: dict[str, Path | str] = {}
    lacking: dict[str, list[str]] = {}
    for address in addresses:
        kept = _kept(address)
        if kept is None or (again and isinstance(kept, str)):
            lacking.setdefault(_host(address), []).append(address)
        else:
            found[address] = kept
    total, stop = sum(map(len, lacking.values())), threading.Event()
    bar = tqdm(
        total=total, desc="fetched", unit="image", leave=False, disable=not (sys.stderr.isatty() and total)
    )
    with bar, ThreadPoolExecutor(HOSTS_AT_ONCE) as pool:
        hosts = [pool.submit(_fetch_host, some, bar, stop) for some in lacking.values()]
        try:
            for done in as_completed(hosts):
                found |= done.result()
        finally:
            stop.set()  # an interruption waits for the files in hand and for no others
    return {address: found[address] for address in addresses}


def _host(address: str) -> str:
    """Who is asked; "" for what is no address, which will be refused."""
    try:
        return urlsplit(web.https(address)).netloc.lower()
    except web.Refused:
        return ""


def _fetch_host(addresses: list[str], bar: tqdm, stop: threading.Event) -> dict[str, Path | str]:
    """Images of one host. Where nobody is there, the others of it are not asked for in this run."""
    http, found, nobody = web.client(), {}, ""
    for address in addresses:
        if stop.is_set():
            break
        try:
            found[address] = nobody or _fetch_image(http, address)
        except web.Refused as error:
            found[address] = str(error)
            _note(address, {"refused": str(error)})
        except web.Unreachable as error:
            found[address] = str(error)
            nobody = str(error) if isinstance(error, web.NoHost) else ""
        bar.update()
    return found


def _fetch_image(http: PoolManager, address: str) -> Path:
    """Ask for one image and keep it under its sha256, if it is one. Raises Refused, Unreachable."""
    folder = cache() / "images"
    with _written(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".incoming-") as place:
            file = Path(place) / "image"
            name = web.download(address, file, http=http)
            try:
                with _decoding:
                    check_image(file)
            except DoriError as error:
                raise web.Refused(str(error).removeprefix(f"{file}: ")) from None
            os.replace(file, folder / name)
        _note(address, {"sha256": name})
    return folder / name


def _kept(address: str) -> Path | str | None:
    """The image in the cache, or why there is none; None for an address that was never asked for."""
    try:
        known = json.loads(_notes(address).read_text())
        if "refused" in known:
            return str(known["refused"])
        path = cache() / "images" / str(known["sha256"])
        return path if _sha256(path) == known["sha256"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _note(address: str, found: dict[str, str]) -> None:
    with _written(_notes(address)):
        write_json(_notes(address), {"address": address, **found})


def _notes(address: str) -> Path:
    return cache() / "addresses" / f"{hashlib.sha256(address.encode()).hexdigest()[:32]}.json"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _written(path: Path) -> Iterator[None]:
    """A disk that is full or closed is no fault of the web's, and stops everything."""
    try:
        yield
    except OSError as error:
        raise DoriError(
            f"{path} cannot be written ({error.strerror}); set DORI_CACHE to another directory"
        ) from None
