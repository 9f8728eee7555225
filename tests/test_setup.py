"""The environment files say the same thing, and the two commands do what a fresh clone needs."""

import importlib
import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from bookbuild.site import HUB
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[1]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads(read("pyproject.toml"))["project"]


@pytest.fixture(scope="module")
def pins() -> dict[str, str]:
    """Canonical name -> version, from constraints.txt."""
    lines = [line for line in read("constraints.txt").splitlines() if line and not line.startswith("#")]
    return {canonical(name): version for name, version in (line.split("==") for line in lines)}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def git_files() -> list[str]:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def dry_run(target: str, tmp_path: Path) -> str:
    """What `make TARGET` would run on a clone that has no environment yet."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    command = ["make", "-n", target, f"VENV={tmp_path / 'venv'}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_every_dependency_is_pinned_within_its_range(project, pins):
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    for requirement in (Requirement(line) for group in groups for line in group):
        pin = pins.get(canonical(requirement.name))
        assert pin is not None, f"{requirement.name} has no pin in constraints.txt"
        assert requirement.specifier.contains(pin, prereleases=True), f"{requirement} excludes its pin {pin}"


def test_torch_is_pinned_without_a_build_tag_and_brings_no_cuda(pins):
    assert "+" not in pins["torch"]
    assert not [name for name in pins if name.startswith(("nvidia", "triton"))]


def test_environment_yml_agrees_with_pyproject(project):
    dependencies = yaml.safe_load(read("environment.yml"))["dependencies"]
    python = next(d for d in dependencies if isinstance(d, str) and d.startswith("python="))
    assert SpecifierSet(project["requires-python"]).contains(python.removeprefix("python="))
    pip = next(d["pip"] for d in dependencies if isinstance(d, dict))
    assert pip == ["-r requirements.txt"], "versions belong in constraints.txt alone"


def test_requirements_install_the_package_with_all_extras_under_the_constraints(project):
    """All but `large`: what it brings needs a GPU."""
    lines = [line for line in read("requirements.txt").splitlines() if line and not line.startswith("#")]
    extras = [extra for extra in project["optional-dependencies"] if extra != "large"]
    assert lines == ["-c constraints.txt", f"-e .[{','.join(extras)}]"]


def test_console_script_exists(project):
    module, _, function = project["scripts"]["dori"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize("target", ["book", "test"])
def test_first_command_makes_the_environment_and_takes_torch_first(target, tmp_path):
    plan = dry_run(target, tmp_path)
    venv, torch, rest = plan.index("-m venv"), plan.index("^torch=="), plan.index("-r requirements.txt")
    assert venv < torch < rest


def test_ci_runs_the_two_commands_and_ends_with_the_tests():
    commands = [line for line in read(".ci/run").splitlines() if line.startswith("make ")]
    assert commands == ["make book", "make test"]
    assert read(".ci/run").rstrip().endswith("make test")


def test_workflows_are_yaml_and_take_torch_from_the_cpu_index():
    for path in sorted((ROOT / ".github" / "workflows").glob("*.yml")):
        workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert workflow["env"]["TORCH_INDEX"].endswith("/cpu"), path.name
        assert workflow["jobs"], path.name


def test_every_job_of_ci_sets_python_up_and_the_book_gets_the_address_of_the_hub():
    """The runners' own Python refuses `pip install`."""
    workflow = yaml.safe_load(read(".github/workflows/ci.yml"))
    for name, job in workflow["jobs"].items():
        kinds = [step.get("uses", "").split("@")[0] for step in job["steps"]]
        runs = [n for n, step in enumerate(job["steps"]) if "run" in step]
        assert kinds.index("actions/setup-python") < runs[0], name
    assert workflow["env"][HUB] == f"${{{{ vars.{HUB} }}}}"


def test_javascript_lock_agrees_with_package_json():
    wanted = json.loads(read("package.json"))
    lock = json.loads(read("package-lock.json"))["packages"]
    for name, version in (wanted["dependencies"] | wanted["devDependencies"]).items():
        assert lock[f"node_modules/{name}"]["version"] == version


def test_git_tracks_nothing_that_is_generated():
    generated = re.compile(r"^(_build|\.venv|node_modules)/|\.ipynb$|__pycache__|\.egg-info/")
    assert not [name for name in git_files() if generated.search(name)]


def test_print_starts_from_a_built_book(tmp_path):
    plan = dry_run("print", tmp_path)
    assert plan.index("scripts/build.py") < plan.index("scripts/print.py")


def test_lint_checks_code_and_spelling(tmp_path):
    plan = dry_run("lint", tmp_path)
    assert "ruff check" in plan
    assert "codespell" in plan


def test_citation_names_the_version_and_the_paper(project):
    citation = yaml.safe_load(read("CITATION.cff"))
    assert str(citation["version"]) == project["version"]
    assert "2507.16880" in str(citation["references"])
