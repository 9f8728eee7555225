"""Fetch a model from the Hugging Face Hub once, whole, and say in one line what is in the way."""

import contextlib
import errno
import hashlib
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
from diffusers import DiffusionPipeline
from huggingface_hub import errors as hub
from huggingface_hub import utils

from dori.errors import DoriError, first_line

CONFIG = ("*.json", "*.txt", "*.model")  # files of configuration and tokenizers
SHA256 = re.compile(r"[0-9a-f]{64}")
LOGIN = "log in with `hf auth login`, or set HF_TOKEN"


def fetch(repository: str, revision: str | None = None) -> Path:
    """The directory of a Hub repository's safetensors pipeline in the local cache, fetched if need be.

    Progress is shown on a terminal. What was fetched is compared with the sha256 the Hub gives for each large
    file. The safety checker is left out. Without network a model that was fetched before is found in the
    cache. Raises DoriError.
    """
    started = time.time()
    try:
        with _bars():
            # parts that are given as None are not fetched
            path = DiffusionPipeline.download(
                repository,
                revision=revision,
                use_safetensors=True,
                safety_checker=None,
                feature_extractor=None,
            )
    except Exception as error:  # diffusers and the Hub client raise a dozen kinds of their own
        raise DoriError(explain(error, repository, revision)) from error
    _verify(Path(path), since=started)
    return Path(path)


def fetch_config(repository: str, revision: str | None, *, put: Path) -> Path:
    """As `fetch`, without weights: configuration and tokenizers, a few megabytes.

    Raises DoriError, with the command that fetches them elsewhere for the directory `put`.
    """
    options = {"revision": revision, "allow_patterns": list(CONFIG)}
    with contextlib.suppress(Exception), _bars():
        return Path(huggingface_hub.snapshot_download(repository, local_files_only=True, **options))
    try:
        with _bars():
            huggingface_hub.model_info(
                repository, revision=revision
            )  # fails at once where there is no network
            return Path(huggingface_hub.snapshot_download(repository, **options))
    except Exception as error:
        files = " ".join(map(repr, CONFIG))
        elsewhere = (
            f"run `{_command(repository, revision)} --include {files} --local-dir {put.name}` where there is "
            f"one, and make the directory {put}"
        )
        raise DoriError(explain(error, repository, revision, elsewhere=elsewhere)) from error


def explain(
    error: BaseException, repository: str, revision: str | None = None, *, elsewhere: str | None = None
) -> str:
    """One line: what is wrong with fetching a repository, and what to do (`elsewhere`: without network)."""
    chain, seen = [], error
    while seen is not None and len(chain) < 20:
        chain.append(seen)
        seen = seen.__cause__ or seen.__context__
    at = _command(repository, revision)
    elsewhere = elsewhere or f"fetch it where there is one (`{at}`) and give the directory as --model"
    token = "your token has no access yet" if huggingface_hub.get_token() else LOGIN
    known = {
        hub.GatedRepoError: f"is gated: accept its licence at https://huggingface.co/{repository}; {token}",
        hub.RevisionNotFoundError: f"has no revision '{revision}'",
        hub.RepositoryNotFoundError: f"is not on the Hub, or is private: check the name; if private, {LOGIN}",
        hub.OfflineModeIsEnabled: f"is not in the cache and HF_HUB_OFFLINE is set: unset it, or {elsewhere}",
    }
    for kind, reason in known.items():
        if any(isinstance(e, kind) for e in chain):
            return f"model '{repository}' {reason}"
    if any(isinstance(e, OSError) and e.errno == errno.ENOSPC for e in chain):
        cache = huggingface_hub.constants.HF_HUB_CACHE
        return f"model '{repository}': the disk of {cache} is full; set HF_HOME to a larger one"
    if any(_status(e) == 401 for e in chain):
        return f"model '{repository}': the Hub does not accept your token; {LOGIN}"
    if any("Connect" in type(e).__name__ or "Timeout" in type(e).__name__ for e in chain):
        return f"model '{repository}' is not in the cache and there is no network: {elsewhere}"
    if "safetensors" in str(error):
        return (
            f"model '{repository}' has no safetensors weights, and pickles can run code and are not read; "
            "look for a revision or a copy with safetensors"
        )
    if any(isinstance(e, hub.EntryNotFoundError) for e in chain):
        return f"model '{repository}' is not a diffusers pipeline (a file is missing on the Hub)"
    return f"model '{repository}' cannot be fetched ({first_line(error, 200)}); check name, network and token"


def _command(repository: str, revision: str | None) -> str:
    return f"hf download {repository}" + (f" --revision {revision}" if revision else "")


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


@contextlib.contextmanager
def _bars() -> Iterator[None]:
    """The Hub client's bars on a terminal; transformers' silence in `loading` has switched them off."""
    if not sys.stderr.isatty() or os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS"):
        yield
        return
    utils.enable_progress_bars()
    try:
        yield
    finally:
        utils.disable_progress_bars()


def _verify(snapshot: Path, *, since: float) -> None:
    """Compare large files that came after `since` with their sha256, which the cache names them by.

    Raises DoriError for one that differs, and removes it, so that the next run fetches it again.
    """
    for file in sorted(snapshot.rglob("*.safetensors")):
        blob = file.resolve()
        if not SHA256.fullmatch(blob.name) or blob.stat().st_mtime < since - 1:
            continue
        with blob.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
        if found != blob.name:
            blob.unlink()
            file.unlink(missing_ok=True)
            raise DoriError(
                f"{file}: not what the Hub has (sha256 {found[:12]}…); run again to fetch it anew"
            )
