"""A web of names that are all one local https server, so that addresses can be refused and redirected."""

import shutil
import socket
import ssl
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dori import web

PUBLIC = "93.184.216.34"
Answer = tuple[int, dict[str, str], bytes]  # status, headers, body


class Web:
    """`answers` by path; `addresses` by name; what was asked for, and which addresses were connected to."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer | Callable[[int], Answer]] = {}
        self.addresses: dict[str, list[str]] = {"pictures.example": [PUBLIC]}
        self.asked: Counter[str] = Counter()
        self.looked_up: Counter[str] = Counter()
        self.connected: list[str] = []

    def put(self, path: str, body: bytes, *, status: int = 200, **headers: str) -> str:
        self.answers[path] = (status, {k.replace("_", "-"): v for k, v in headers.items()}, body)
        return f"https://pictures.example{path}"

    def redirect(self, path: str, to: str) -> str:
        return self.put(path, b"", status=302, Location=to)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory) -> Path:
    """Certificate and key of pictures.example and its like, signed by themselves."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    names = "subjectAltName=DNS:pictures.example,DNS:two.example,DNS:inside.example"
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-subj", "/CN=pictures.example", "-addext", names, "-days", "2", "-keyout", "-", "-out", "-"],
        capture_output=True, check=True,
    ).stdout  # fmt: skip
    path.write_bytes(made)
    return path


@pytest.fixture
def the_web(certificate, monkeypatch, tmp_path) -> Iterator[Web]:
    found = Web()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            found.asked[self.path] += 1
            answer = found.answers.get(self.path, (404, {}, b""))
            status, headers, body = answer(found.asked[self.path]) if callable(answer) else answer
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                if value:
                    self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = "Content-Length" in headers

        def log_message(self, *_) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None  # clients that hang up are what is tested
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    real, port = web.connect, server.server_address[1]

    def look_up(host, port, *_, **__):
        found.looked_up[host] += 1
        if host not in found.addresses:
            raise socket.gaierror("unknown name")
        kinds = [socket.AF_INET6 if ":" in a else socket.AF_INET for a in found.addresses[host]]
        return [
            (k, socket.SOCK_STREAM, 6, "", (a, port))
            for k, a in zip(kinds, found.addresses[host], strict=True)
        ]

    def connect(family, kind, protocol, address, timeout):
        found.connected.append(address[0])
        return real(socket.AF_INET, kind, protocol, ("127.0.0.1", port), timeout)

    monkeypatch.setattr(web.socket, "getaddrinfo", look_up)
    monkeypatch.setattr(web, "connect", connect)
    monkeypatch.setattr(web.time, "sleep", lambda _: None)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setenv("DORI_CACHE", str(tmp_path / "cache"))
    yield found
    server.shutdown()
    server.server_close()
