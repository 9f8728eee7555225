"""From staged sources to the site: this checkout's configuration, vendored JavaScript, jupyter-book."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from bookbuild.layout import BuildError, Layout

VENDORED = {"@jupyter-widgets/html-manager/dist": ("embed.js", "*.woff2"), "mathjax/es5": ("tex-svg.js",)}
GITHUB = re.compile(r"github\.com[:/]([^/]+)/([^/]+?)(?:\.git)?/?$")
HUB = "DORI_JUPYTERHUB"
PUBLISHED = "published"  # branch with the executed notebooks, pushed by CI: Binder opens it


def vendor_scripts(layout: Layout) -> bool:
    """Copy MathJax and the widget manager into the staged assets; False where npm did not fetch them."""
    modules, target = layout.root / "node_modules", layout.src / "assets" / "vendor"
    patterns = [(folder, name) for folder, names in VENDORED.items() for name in names]
    sources = [path for folder, name in patterns for path in (modules / folder).glob(name)]
    if not {"embed.js", "tex-svg.js"} <= {path.name for path in sources}:
        print("npm packages are missing: maths and widgets on the pages will need the network", flush=True)
        return False
    target.mkdir(parents=True, exist_ok=True)
    for path in sources:
        shutil.copy(path, target)
    return True


def find_repository(root: Path, environment: Mapping[str, str] = os.environ) -> tuple[str, str] | None:
    """(owner, name) on GitHub, from GITHUB_REPOSITORY or the remote `origin`; None where there is neither."""
    if named := environment.get("GITHUB_REPOSITORY"):
        owner, _, name = named.partition("/")
        return owner, name
    ask = ["git", "remote", "get-url", "origin"]
    remote = subprocess.run(ask, cwd=root, capture_output=True, text=True, check=False)
    found = GITHUB.search(remote.stdout.strip())
    return (found[1], found[2]) if found else None


def configure(
    layout: Layout,
    *,
    vendored: bool,
    repository: tuple[str, str] | None,
    environment: Mapping[str, str] = os.environ,
) -> Path:
    """Write `_build/_config.yml`: the root's, with what only this checkout knows (address, JavaScript).

    Chapters get buttons that open them in Binder and Colab, and on the JupyterHub whose address stands in the
    environment variable DORI_JUPYTERHUB (it needs nbgitpuller).
    """
    config: dict[str, Any] = yaml.safe_load((layout.root / "_config.yml").read_text(encoding="utf-8"))
    sphinx = config["sphinx"]
    extensions = sphinx["local_extensions"].items()
    sphinx["local_extensions"] = {name: str(layout.root / path) for name, path in extensions}
    if not vendored:
        for key in ("mathjax_path", "nb_ipywidgets_js"):
            del sphinx["config"][key]
    if repository:
        owner, name = repository
        address = f"https://{owner}.github.io/{name}/"
        config["html"] |= {"baseurl": address, "use_repository_button": True, "use_issues_button": True}
        config["repository"] = {"url": f"https://github.com/{owner}/{name}", "branch": PUBLISHED}
        config["launch_buttons"] = {
            "notebook_interface": "jupyterlab",
            "binderhub_url": "https://mybinder.org",
            "colab_url": "https://colab.research.google.com",
        }
        if hub := environment.get(HUB):
            config["launch_buttons"]["jupyterhub_url"] = hub
        sphinx.setdefault("extra_extensions", []).append("sphinxext.opengraph")
        sphinx["config"] |= {"ogp_site_url": address, "ogp_social_cards": {"enable": False}}
    path = layout.build / "_config.yml"
    path.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


def run_jupyter_book(layout: Layout, config: Path, *, strict: bool, builder: str = "html") -> None:
    """Build the pages in `_build/<builder>`. `strict` turns warnings into a failure, after showing all."""
    shutil.rmtree(layout.build / builder, ignore_errors=True)
    # `python -m jupyter_book` does not work; --toc is resolved against the source folder unless absolute.
    command = [
        str(Path(sys.executable).with_name("jupyter-book")),
        "build",
        str(layout.src),
        "--config",
        str(config),
        "--toc",
        str(layout.pages / "_toc.yml"),
        "--path-output",
        str(layout.root),
        "--all",
        "--builder",
        builder,
        "-q",
        *(["-W", "-n", "--keep-going"] if strict else []),
    ]
    if subprocess.run(command, cwd=layout.root, check=False).returncode:
        raise BuildError("the pages do not build; the warnings above say where")
