"""A file from the web: https alone, from public addresses, bounded in size and time, asked for politely."""

import hashlib
import ipaddress
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin, urlsplit, urlunsplit

import urllib3
from urllib3.connection import HTTPSConnection
from urllib3.connectionpool import HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NameResolutionError, NewConnectionError

from dori import __version__
from dori.errors import DoriError

MAX_BYTES = 32_000_000  # of an image
CONNECT, READ, WHOLE = 10.0, 20.0, 120.0  # seconds: to connect, between two pieces, for an image
TRIES, WAIT = 3, 2.0  # attempts; seconds before the second, doubled each time
LONGEST_WAIT = 60.0  # seconds, whatever a server asks for
REDIRECTS = 5
AGAIN = (408, 425, 429, 500, 502, 503, 504)  # may be answered otherwise a little later
NAT64 = ipaddress.ip_network("64:ff9b::/96")  # an IPv4 address in the last four bytes
HEADERS = {
    "User-Agent": f"dori/{__version__} (research; fetches each image of a benchmark once)",
    "Accept-Encoding": "identity",  # what is counted is what is kept
}


class Refused(DoriError):
    """An address or a file that is not wanted, now or later."""


class Unreachable(DoriError):
    """No answer; a later attempt may have more luck."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait  # seconds, as the server asks


class NoHost(Unreachable):
    """Nobody is there to ask: no address is known, or it takes no connection."""


def https(url: str) -> str:
    """The address as it is asked for: https in the place of http, no fragment. Raises Refused."""
    try:
        parts = urlsplit(url.strip())
        if parts.scheme.lower() not in ("http", "https") or not parts.hostname:
            raise Refused("not a web address")
        port = parts.port
    except ValueError as error:
        raise Refused(f"not a web address ({error})") from None
    if parts.scheme.lower() == "http" and port not in (None, 80):
        raise Refused("http is not read, only https")
    place = parts.netloc.rpartition("@")[2]
    if parts.scheme.lower() == "http" and port == 80:
        place = place.removesuffix(":80")
    return urlunsplit(("https", place, parts.path or "/", parts.query, ""))


def public(address: str) -> bool:
    """Whether anybody may ask for it: not private, loopback, link-local, multicast or reserved."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    inner = getattr(ip, "ipv4_mapped", None) or getattr(ip, "sixtofour", None)
    if isinstance(ip, ipaddress.IPv6Address) and ip in NAT64:
        inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.is_global and not ip.is_multicast and (inner is None or public(str(inner)))


def download(
    url: str,
    path: Path,
    *,
    limit: int = MAX_BYTES,
    seconds: float = WHOLE,
    http: urllib3.PoolManager | None = None,
) -> str:
    """Write the file at a web address to `path`; its sha256 (hex).

    Tried up to `TRIES` times, with pauses; redirections are followed to https addresses that are public
    themselves. Raises Refused (wrong address, too large, not there) or Unreachable.
    """
    http, url = http or client(), https(url)
    for attempt in range(TRIES):
        try:
            return _attempt(http, url, path, limit=limit, seconds=seconds)
        except Unreachable as error:
            if attempt + 1 == TRIES:
                raise
            time.sleep(min(LONGEST_WAIT, max(error.wait, WAIT * 2**attempt)))
    raise AssertionError("unreachable")


def client() -> urllib3.PoolManager:
    """Connections that go to public addresses alone; no proxy, no redirections, no retries of their own."""
    found = urllib3.PoolManager(num_pools=4, retries=False, headers=HEADERS)
    found.pool_classes_by_scheme = {"https": _Pool}
    return found


class _Connection(HTTPSConnection):
    """To the very address that was checked: a second look-up could give another one."""

    def _new_conn(self) -> socket.socket:
        try:
            found = socket.getaddrinfo(self._dns_host, self.port, type=socket.SOCK_STREAM)
        except (socket.gaierror, UnicodeError) as error:
            raise NameResolutionError(self.host, self, error) from error
        for *_, address in found:
            if not public(address[0]):
                raise Refused(f"{self.host} is at {address[0]}, which is no public address")
        error: OSError = OSError("no address")
        for family, kind, protocol, _, address in found:
            try:
                return connect(family, kind, protocol, address, self.timeout)
            except OSError as failed:
                error = failed
        if isinstance(error, TimeoutError):
            raise ConnectTimeoutError(self, f"no connection to {self.host}") from error
        raise NewConnectionError(self, f"no connection to {self.host} ({error})") from error


class _Pool(HTTPSConnectionPool):
    ConnectionCls = _Connection


def connect(family: int, kind: int, protocol: int, address: tuple, timeout: float) -> socket.socket:
    """A connection to this address."""
    found = socket.socket(family, kind, protocol)
    try:
        found.settimeout(timeout)
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        found.connect(address)
    except BaseException:
        found.close()
        raise
    return found


def _attempt(http: urllib3.PoolManager, url: str, path: Path, *, limit: int, seconds: float) -> str:
    """Ask once, along its redirections."""
    until = time.monotonic() + seconds
    for _ in range(REDIRECTS + 1):
        answer = _ask(http, url)
        try:
            onward = answer.get_redirect_location()
            if not onward:
                return _save(answer, path, limit, until)
        finally:
            answer.close()
        url = _onward(url, onward)
    raise Refused(f"more than {REDIRECTS} redirections")


def _ask(http: urllib3.PoolManager, url: str) -> urllib3.BaseHTTPResponse:
    wait = urllib3.Timeout(connect=CONNECT, read=READ)
    try:
        return http.request("GET", url, redirect=False, preload_content=False, timeout=wait)
    except NameResolutionError:
        raise NoHost(f"no address is known of {urlsplit(url).hostname}") from None
    except (NewConnectionError, ConnectTimeoutError) as error:
        raise NoHost(f"no connection ({_first(error)})") from None
    except (HTTPError, OSError) as error:
        raise Unreachable(f"no answer ({_first(error)})") from None


def _onward(url: str, location: str) -> str:
    """Where a redirection leads; from https to http is no way."""
    try:
        found = urljoin(url, location)
    except ValueError as error:
        raise Refused(f"redirects to no web address ({error})") from None
    if not found.lower().startswith("https:"):
        raise Refused(f"redirects to {found[:120]}, which is not https")
    return https(found)


def _save(answer: urllib3.BaseHTTPResponse, path: Path, limit: int, until: float) -> str:
    if answer.status in AGAIN:
        raise Unreachable(f"the server answers {answer.status}", _asked_wait(answer))
    if answer.status != 200:
        raise Refused(f"the server answers {answer.status}")
    length = answer.headers.get("Content-Length", "")
    if length.isdecimal() and int(length) > limit:
        raise Refused(f"{int(length) / 1e6:.0f} MB; at most {limit / 1e6:.0f} are read")
    digest, count = hashlib.sha256(), 0
    with path.open("wb") as file:
        for piece in _pieces(answer):
            count += len(piece)
            if count > limit:
                raise Refused(f"more than {limit / 1e6:.0f} MB")
            if time.monotonic() > until:
                raise Unreachable("too slow: not finished in time")
            digest.update(piece)
            file.write(piece)
    return digest.hexdigest()


def _pieces(answer: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    """What arrives, as it arrives: waiting for whole pieces would let a slow server take any time."""
    while True:
        try:
            piece = answer.read1(65536, decode_content=False)
        except (HTTPError, OSError) as error:
            raise Unreachable(f"broken off ({_first(error)})") from None
        if not piece:
            return
        yield piece


def _asked_wait(answer: urllib3.BaseHTTPResponse) -> float:
    """Seconds of Retry-After; a date is not read."""
    found = answer.headers.get("Retry-After", "")
    return float(found) if found.isdecimal() and len(found) < 6 else 0.0


def _first(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
