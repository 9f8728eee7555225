"""Write the executed notebooks as other machines open them: on Colab, the first cell fetches the study.

    python scripts/published.py FOLDER

The workflow that publishes the site calls this and pushes the result as branch `published`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from bookbuild.layout import BuildError, Layout
from bookbuild.site import find_repository

FETCH = """\
# Colab starts with an empty machine: fetch the study and install it. Anywhere else this cell does nothing.
import sys

if "google.colab" in sys.modules:
    !git clone --quiet --depth 1 {address}
    %cd {name}
    %pip install --quiet -e .[book]
"""


def with_fetch(notebook: nbformat.NotebookNode, repository: tuple[str, str]) -> nbformat.NotebookNode:
    """The notebook with the cell in front, below nothing: it has to run before any import."""
    owner, name = repository
    source = FETCH.format(address=f"https://github.com/{owner}/{name}", name=name)
    cell = nbformat.v4.new_code_cell(source)
    cell["id"] = "fetch"
    notebook.cells.insert(0, cell)
    return notebook


def publish(layout: Layout, folder: Path, repository: tuple[str, str]) -> int:
    """Write all executed chapters to `folder`; how many. Raises BuildError if there are none."""
    executed = sorted(layout.executed.glob("*.ipynb"))
    if not executed:
        raise BuildError(f"{layout.executed} holds no executed notebook; build the book first")
    folder.mkdir(parents=True, exist_ok=True)
    for path in executed:
        notebook = with_fetch(nbformat.read(path, nbformat.NO_CONVERT), repository)
        nbformat.write(notebook, folder / path.name)
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
