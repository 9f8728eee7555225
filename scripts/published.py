"""Write the executed notebooks, and the environment, as other machines open them.

    python scripts/published.py FOLDER

On Colab, the first cell of a notebook fetches the study; Binder takes the build of PyTorch that needs no GPU.
The workflow that publishes the site calls this with the checkout itself and pushes the result as branch
`published`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
import yaml
from bookbuild.layout import BuildError, Layout
from bookbuild.site import find_repository

TORCH_INDEX = "https://download.pytorch.org/whl/cpu"  # Binder has no GPU, and the other build is gigabytes
ENVIRONMENT = "environment.yml"
FETCH = """\
# Colab starts with an empty machine: fetch the study and install it. Anywhere else this cell does nothing.
# Its kernel keeps its own versions; its torchvision does not fit the study's torch, and nothing needs it.
# If an import complains of versions, choose Runtime, Restart session, and run all: nothing is fetched twice.
import sys

if "google.colab" in sys.modules:
    !test -d {folder} || git clone --quiet --depth 1 {address} {folder}
    %cd -q {folder}
    !grep -Ev "^(ipykernel|ipython|jupyter_c.*|pyzmq|tornado|traitlets)==" constraints.txt > colab.txt
    %pip install --quiet -c colab.txt -e . ipywidgets
    %pip uninstall --quiet --yes torchvision torchaudio
"""


def with_fetch(notebook: nbformat.NotebookNode, repository: tuple[str, str]) -> nbformat.NotebookNode:
    """The notebook with the cell in front, below nothing: it has to run before any import."""
    owner, name = repository
    source = FETCH.format(address=f"https://github.com/{owner}/{name}", folder=f"/content/{name}")
    cell = nbformat.v4.new_code_cell(source)
    cell["id"] = "fetch"
    notebook.cells.insert(0, cell)
    return notebook


def without_gpu(environment: str) -> str:
    """environment.yml for Binder: to pip, 2.13.0+cpu of TORCH_INDEX is newer than PyPI's 2.13.0."""
    found = yaml.safe_load(environment)
    (pip,) = (part["pip"] for part in found["dependencies"] if isinstance(part, dict))
    pip.insert(0, f"--extra-index-url {TORCH_INDEX}")
    return yaml.safe_dump(found, sort_keys=False)


def publish(layout: Layout, folder: Path, repository: tuple[str, str]) -> int:
    """Write all executed chapters to `folder`/notebooks, the environment beside it; how many chapters.

    Raises BuildError if there are none.
    """
    executed = sorted(layout.executed.glob("*.ipynb"))
    if not executed:
        raise BuildError(f"{layout.executed} holds no executed notebook; build the book first")
    (folder / "notebooks").mkdir(parents=True, exist_ok=True)
    for path in executed:
        notebook = with_fetch(nbformat.read(path, nbformat.NO_CONVERT), repository)
        nbformat.write(notebook, folder / "notebooks" / path.name)
    environment = (layout.root / ENVIRONMENT).read_text(encoding="utf-8")
    (folder / ENVIRONMENT).write_text(without_gpu(environment), encoding="utf-8")
    return len(executed)


def main(arguments: list[str]) -> int:
    """Exit code 2 with one message for anything a person can put right."""
    layout = Layout(Path(__file__).resolve().parents[1])
    try:
        if len(arguments) != 1:
            raise BuildError("give the folder to write to")
        repository = find_repository(layout.root)
        if repository is None:
            raise BuildError("this checkout has no address on GitHub; set GITHUB_REPOSITORY=owner/name")
        print(f"{publish(layout, Path(arguments[0]), repository)} notebooks in {arguments[0]}")
    except BuildError as error:
        print(f"published: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
