"""What a release pushes for Colab and Binder: notebooks that fetch the study, an environment without CUDA."""

import builtins
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("nbformat", reason="nbformat is not installed: pip install -e .[book]")

import nbformat
import published
import yaml
from bookbuild.layout import BuildError, Layout
from IPython.core.inputtransformer2 import TransformerManager

ROOT = Path(__file__).resolve().parents[1]
# git clone --quiet --depth 1 ADDRESS FOLDER
DONE_BY = {"git": f'mkdir "$6" && cp {ROOT}/constraints.txt "$6"\n', "pip": ""}


class Shell:
    """What a cell of IPython calls for lines that begin with ! or %."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.patch = patch

    def system(self, command: str) -> None:
        subprocess.run(command, shell=True, check=True)

    def run_line_magic(self, name: str, line: str) -> None:
        if name == "cd":
            self.patch.chdir(line.removeprefix("-q "))
        else:
            self.system(f"{name} {line}")


@pytest.fixture
def published_to(tmp_path) -> Path:
    """A folder that one executed chapter was published to."""
    layout = Layout(tmp_path)
    (tmp_path / "environment.yml").write_text((ROOT / "environment.yml").read_text())
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 + 1")])
    layout.executed.mkdir(parents=True)
    nbformat.write(notebook, layout.executed / "01_first.ipynb")
    assert published.publish(layout, tmp_path / "out", ("me", "dori")) == 1
    return tmp_path / "out"


def test_published_notebooks_fetch_the_study_first(published_to):
    before = nbformat.read(published_to.parent / "_build" / "executed" / "01_first.ipynb", 4)
    notebook = nbformat.read(published_to / "notebooks" / "01_first.ipynb", 4)
    assert "https://github.com/me/dori" in notebook.cells[0].source
    assert notebook.cells[1:] == before.cells
    nbformat.validate(notebook)


def test_on_colab_the_first_cell_clones_once_and_installs_the_pinned_versions(
    published_to, tmp_path, monkeypatch
):
    machine, log = tmp_path / "colab", tmp_path / "log"
    machine.mkdir()
    for name in ("git", "pip"):
        (machine / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {log}\n{DONE_BY[name]}')
        (machine / name).chmod(0o755)
    source = nbformat.read(published_to / "notebooks" / "01_first.ipynb", 4).cells[0].source
    plain = TransformerManager().transform_cell(source.replace("/content", str(machine)))
    monkeypatch.setenv("PATH", f"{machine}:{os.environ['PATH']}")
    monkeypatch.setattr(builtins, "get_ipython", lambda: Shell(monkeypatch), raising=False)
    exec(plain, {})
    assert not log.exists(), "elsewhere it does nothing"
    monkeypatch.setitem(sys.modules, "google.colab", sys)
    for _ in range(2):
        exec(plain, {})
    told = log.read_text()
    assert told.count("git clone") == 1
    assert told.count("pip install --quiet -c colab.txt -e . ipywidgets") == 2
    assert told.rstrip().endswith("pip uninstall --quiet --yes torchvision torchaudio")
    pinned = {line.split("==")[0] for line in (machine / "dori" / "colab.txt").read_text().splitlines()}
    assert pinned >= {"torch", "diffusers", "ipywidgets", "numpy"}
    assert not pinned & {"ipykernel", "ipython", "jupyter_client", "tornado"}, "the kernel that runs this"


def test_binder_takes_torch_without_a_gpu(published_to):
    ours = yaml.safe_load((ROOT / "environment.yml").read_text())
    theirs = yaml.safe_load((published_to / "environment.yml").read_text())
    options, *rest = theirs["dependencies"][-1]["pip"]
    assert options == "--extra-index-url https://download.pytorch.org/whl/cpu"
    assert rest == ours["dependencies"][-1]["pip"]
    assert theirs["dependencies"][:-1] == ours["dependencies"][:-1]


def test_nothing_executed_is_nothing_to_publish(tmp_path):
    with pytest.raises(BuildError, match="build the book first"):
        published.publish(Layout(tmp_path), tmp_path / "out", ("me", "dori"))
