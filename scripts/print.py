"""The whole book as one PDF, from what `make book` left: one long page, printed by Chromium.

    python scripts/print.py [_build/book.pdf]

Chapters are not executed. Interactive figures are left out, the still pictures beside them are there.
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from bookbuild import site
from bookbuild.layout import BuildError, Layout

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PAGE = "singlehtml"  # Sphinx's name for it
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run")
OPTIONS += ("--disable-background-networking", "--disable-component-update", "--disable-sync")
FORMULAS_MS = 30_000  # time that scripts on the page are given, above all MathJax


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files without telling of each."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def find_browser() -> str:
    """Chromium's path. Raises BuildError."""
    found = next((path for path in map(shutil.which, BROWSERS) if path), None)
    if found is None:
        raise BuildError("no Chromium on this machine (Debian: apt-get install chromium)")
    return found


def print_page(folder: Path, target: Path, browser: str) -> None:
    """Print `folder`/index.html to `target`; over http, as scripts may not read files. Raises BuildError."""
    handler = functools.partial(Quiet, directory=str(folder))
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        profile = stack.enter_context(tempfile.TemporaryDirectory())
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [browser, *OPTIONS, f"--user-data-dir={profile}", f"--virtual-time-budget={FORMULAS_MS}"]
        command += ["--no-pdf-header-footer", f"--print-to-pdf={target}"]
        command.append(f"http://127.0.0.1:{server.server_address[1]}/index.html")
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        server.shutdown()
    if done.returncode or not target.exists():
        raise BuildError(f"Chromium printed nothing: {done.stderr.strip()[-400:]}")


def main(arguments: list[str]) -> int:
    """Exit code 2 with one message for anything a person can put right."""
    layout = Layout(Path(__file__).resolve().parents[1])
    target = Path(arguments[0] if arguments else layout.build / "book.pdf").resolve()
    try:
        browser, config = find_browser(), layout.build / "_config.yml"
        if not config.exists() or not layout.html.exists():
            raise BuildError("nothing to print yet: run `make book` first")
        site.run_jupyter_book(layout, config, strict=False, builder=PAGE)
        target.unlink(missing_ok=True)
        print_page(layout.build / PAGE, target, browser)
    except BuildError as error:
        print(f"print: {error}", file=sys.stderr)
        return 2
    print(f"{target} ({target.stat().st_size / 2**20:.1f} MiB)")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
