"""The guides' commands do what is said: each is run, on a tiny model and a small benchmark."""

import hashlib
import importlib.util
import io
import json
import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from click.testing import CliRunner
from networks import Descriptor, Net
from PIL import Image

from dori.cli import main
from dori.metrics import copy

pytest_plugins = ["https"]

ROOT = Path(__file__).parents[1]
SMALL = ["--preset=smoke", "--device=cpu"]
BRIEF = [f"--set={s}" for s in ("epochs=1", "steps=1", "search.steps=1", "at-once=2", "retain=2")]
SHORT = {"--steps": "2", "--timesteps": "2"}  # what a guide asks for takes longer than a test


def commands(page: str) -> list[str]:
    """Commands of a page's bash blocks, each on one line; `\\` at a line's end joins it with the next."""
    blocks = re.findall(
        r"^```bash\n(.+?)^```$", (ROOT / "book" / page).read_text(encoding="utf-8"), re.M | re.S
    )
    lines = re.sub(r"\|\n\s*", "| ", "".join(blocks).replace("\\\n", "")).splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def of(page: str, program: str) -> list[str]:
    return [c for c in commands(page) if c.split()[0] == program]


@pytest.fixture
def filled(tiny_dir, training_csv):
    """A command's words with a model and a benchmark that are here, a search that is short, a free port."""

    def fill(command: str) -> list[str]:
        names = {"my-org/my-model": str(tiny_dir), "prompts.csv": str(training_csv)}
        words = [names.get(w, w) for w in shlex.split(command)]
        for k, word in enumerate(words[:-1]):
            words[k + 1] = SHORT.get(word, words[k + 1])
        return words

    return fill


def test_every_command_is_of_a_kind_that_is_run_here():
    pages = ("guide.md", "clusters.md", "benchmarks.md")
    programs = {c.split()[0] for page in pages for c in commands(page)}
    assert programs == {"make", "jupytext", "dori", "accelerate"}


@pytest.mark.parametrize("command", of("guide.md", "make"))
def test_make_knows_the_targets_and_variables(command):
    found = subprocess.run(
        [*shlex.split(command), "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for value in re.findall(r"=(\S+)", command):
        assert value in found


def test_a_chapter_alone_takes_its_parameters(tmp_path, filled):
    cli = pytest.importorskip("papermill.cli", reason="papermill is not installed: pip install -e .[book]")
    (first, asked), (same, second) = (command.split(" | ") for command in of("guide.md", "jupytext"))
    assert first == same
    programs = Path(sys.executable).parent
    source = subprocess.run(
        [programs / "jupytext", *shlex.split(first)[1:]], cwd=ROOT, capture_output=True, check=True
    ).stdout
    told = CliRunner().invoke(cli.papermill, shlex.split(asked)[1:], input=source)
    assert all(f"{name}: " in told.output for name in re.findall(r"-p (\w+)", second))
    subprocess.run(
        [programs / "papermill", *filled(second)[1:], "--prepare-only"],
        cwd=tmp_path, input=source, capture_output=True, check=True,
    )  # fmt: skip
    assert "injected-parameters" in (tmp_path / "out.ipynb").read_text()


def test_the_command_line_goes_from_evaluation_to_attack(tmp_path, filled, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for command in of("guide.md", "dori"):
        _, name, *options = filled(command)
        if name != "check":
            options += SMALL
        if "nemo" in options:
            options += ["--z=1"]  # a network that was never trained has no neurons that stand out
        if "adversarial" in options:
            options += BRIEF
        assert main([name, *options]) == 0, capsys.readouterr().err
    for run in ("mine", "nemo", "nemo-attacked"):
        assert (tmp_path / "runs" / run / "summary.json").is_file()
    assert (tmp_path / "my-model-trained" / "model_index.json").is_file()


@pytest.fixture
def published(the_web, tmp_path, tiny_clip, monkeypatch):
    """What the page on benchmarks names: the three lists, with an image that is gone, and three networks."""
    rows = [
        {"caption": f"dawn {n}", "index": n, "url": the_web.put(f"/{n}.png", picture(n))} for n in range(3)
    ]
    rows += [{"caption": "gone", "index": 3, "url": "http://pictures.example/gone.png"}]
    (tmp_path / "sdv1_500_memorized.jsonl").write_text("\n".join(map(json.dumps, rows)))
    table = pd.DataFrame(rows).rename(columns=str.capitalize).assign(type=["VM", "TM", "TM", "VM"])
    table.rename(columns={"Url": "URL"}).to_csv(tmp_path / "memorized_laion_prompts.csv", sep=";")
    if importlib.util.find_spec("pyarrow"):
        webster = pd.DataFrame(rows).assign(overfit_type=["MV", "TV", "N", "RV"])
        webster.to_parquet(tmp_path / "sdv1_bb_edge_groundtruth.parquet")
    monkeypatch.setattr("dori.metrics.inception.WIDTH", 3)  # FID of 2048 features takes half a minute
    for name, net in (("sscd_disc_large.torchscript.pt", Descriptor()), ("inception-2015-12-05.pt", Net(3))):
        torch.jit.script(net).save(str(tmp_path / name))
    tiny_clip.model.save_pretrained(tmp_path / "my-org" / "my-clip")
    tiny_clip.tokenizer.save_pretrained(tmp_path / "my-org" / "my-clip")
    file = (tmp_path / "sscd_disc_large.torchscript.pt").read_bytes()
    known = hashlib.sha256(file).hexdigest()
    for name in ("large", "mixup"):
        the_web.put(f"/sscd-copy-detection/sscd_disc_{name}.torchscript.pt", file)
    here = "https://pictures.example/sscd-copy-detection/sscd_disc_"
    monkeypatch.setattr(copy, "SSCD_ADDRESS", f"{here}mixup.torchscript.pt")
    monkeypatch.setattr(copy, "SSCD_SHA256", known)
    return {"$SHA256": known, "https://dl.fbaipublicfiles.com/sscd-copy-detection/sscd_disc_": here}


def picture(colour: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (colour, 0, 0)).save(file, format="PNG")
    return file.getvalue()


def test_benchmarks_are_checked_fetched_and_measured_as_the_guide_says(
    tmp_path, filled, published, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    said = {}
    for command in of("benchmarks.md", "dori"):
        for word, here in published.items():
            command = command.replace(word, here)
        _, name, *options = filled(command)
        if options[0].endswith(".parquet") and not Path(options[0]).is_file():
            continue  # no pyarrow here
        assert main([name, *options, *(SMALL if name == "evaluate" else [])]) == 0, capsys.readouterr().err
        said[" ".join([name, *options[:1]])] = capsys.readouterr().out
    assert "left out 1" in " ".join(said["benchmark memorized_laion_prompts.csv"].split())
    assert "template 2" in " ".join(said["benchmark memorized_laion_prompts.csv"].split())
    assert "finished" in said["status runs/laion"]
    summaries = {run: json.loads((tmp_path / "runs" / run / "summary.json").read_text())
                 for run in ("laion", "sscd", "large", "fetched", "measured")}  # fmt: skip
    assert summaries["laion"]["n"] == 2  # the smoke preset takes two of the three that are there
    assert summaries["sscd"]["descriptor"] == "sscd_disc_mixup"
    assert summaries["large"]["descriptor"] == summaries["fetched"]["descriptor"] == "sscd_disc_large"
    assert summaries["large"]["by_kind"] == summaries["fetched"]["by_kind"]
    assert summaries["measured"]["clip"] == "my-org/my-clip"
    assert summaries["measured"]["fidelity"]["features"] == "inception-2015-12-05"


@pytest.mark.parametrize("command", of("clusters.md", "accelerate"))
def test_the_launcher_and_dori_take_the_words_of_the_guide(command, tmp_path, filled, monkeypatch, capsys):
    """In this process: two of them are started by the script for Slurm below and in test_parallel.py."""
    given = launch_command_parser().parse_args(filled(command)[2:])
    assert given.module
    assert given.training_script == "dori"
    words = [*given.training_script_args, "--preset=smoke"]
    monkeypatch.chdir(tmp_path)
    assert main(words + (BRIEF if "mitigate" in words else [])) == 0, capsys.readouterr().err
    assert (tmp_path / words[words.index("--out") + 1] / "provenance.json").is_file()
    for asked in of("clusters.md", "dori") if "attack" in words else ():
        assert main(shlex.split(asked)[1:]) == 0
        assert "time: attack" in capsys.readouterr().out


def test_the_slurm_script_joins_the_nodes(tmp_path, filled, tiny_dir, training_csv):
    """Two nodes of one process each, played by two processes here: scontrol and srun are stand-ins."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "scontrol").write_text("#!/bin/sh\necho 127.0.0.1\necho other\n")
    (tools / "srun").write_text(
        '#!/bin/sh\nSLURM_PROCID=1 "$@" & other=$!\nSLURM_PROCID=0 "$@" && wait $other\n'
    )
    script = (ROOT / "book" / "assets" / "slurm.sh").read_text()
    script = script.replace("my-org/my-model", str(tiny_dir)).replace("prompts.csv", str(training_csv))
    script = script.replace("--out runs/attacked", "--steps 2 --preset smoke --out runs/attacked")
    (tmp_path / "slurm.sh").write_text(script)
    for tool in tools.iterdir():
        tool.chmod(0o755)
    told = {"SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "1", "SLURM_JOB_NODELIST": "a,b"}
    told |= {"SLURM_JOB_ID": str(free_port()), "PATH": f"{tools}:/usr/bin:/bin"}
    told |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    venv = tmp_path / ".venv" / "bin"
    venv.mkdir(parents=True)
    (venv / "activate").write_text(f'export PATH="{Path(sys.executable).parent}:$PATH"\n')
    said = subprocess.run(
        ["bash", "slurm.sh"], cwd=tmp_path, env=os.environ | told, capture_output=True, text=True
    )
    assert said.returncode == 0, said.stderr
    assert said.stdout.count("records computed in this run") == 1
    assert (tmp_path / "runs" / "attacked" / "summary.json").is_file()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
