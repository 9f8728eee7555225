"""How long each stage took is kept in the run directory, over runs and processes, whatever ends them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dori.cli import main
from dori.status import read_status
from dori.stopwatch import FOLDER, Stopwatch, seconds_in


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on when it is told to."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


def test_a_second_is_counted_once_and_for_the_innermost_stage(tmp_path, clock):
    watch = Stopwatch(tmp_path)
    with watch.timed("locality"):
        clock(1)
        with watch.timed("image"):
            clock(20)
            with watch.timed("loading"):
                clock(300)
        clock(4000)
    assert seconds_in(tmp_path) == {"locality": 4001, "image": 20, "loading": 300}


def test_runs_and_processes_add_up(tmp_path, clock):
    first, second = Stopwatch(tmp_path), Stopwatch(tmp_path)
    for watch, seconds in ((first, 1), (second, 20), (first, 300)):
        with watch.timed("image"):
            clock(seconds)
    assert seconds_in(tmp_path) == {"image": 321}


def test_a_stage_that_breaks_counts(tmp_path, clock):
    watch = Stopwatch(tmp_path)

    def interrupted():
        with watch.timed("outer"), watch.timed("attack"):
            clock(5)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with watch.timed("outer"):
        clock(1)
    assert seconds_in(tmp_path) == {"attack": 5, "outer": 1}


def test_what_a_killed_process_had_counted_stays(tmp_path):
    program = (
        "import os, time; from pathlib import Path; from dori.stopwatch import Stopwatch\n"
        f"timed = Stopwatch(Path({str(tmp_path)!r})).timed\n"
        "with timed('image'): time.sleep(0.2)\n"
        "with timed('score'): os.kill(os.getpid(), 9)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run([sys.executable, "-c", program], env=environment, check=False)
    assert found.returncode == -signal.SIGKILL
    assert list(seconds_in(tmp_path)) == ["image"]
    assert seconds_in(tmp_path)["image"] >= 0.2


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"image": "long"}', '{"image": null}'])
def test_a_damaged_file_counts_nothing(tmp_path, clock, text):
    watch = Stopwatch(tmp_path)
    with watch.timed("image"):
        clock(2)
    (tmp_path / FOLDER / "other.json").write_text(text)
    assert seconds_in(tmp_path) == {"image": 2}


def test_no_room_for_the_time_is_no_reason_to_stop(tmp_path):
    (tmp_path / FOLDER).write_text("in the way")
    done = []
    with Stopwatch(tmp_path).timed("image"):
        done.append(1)
    assert done == [1]
    assert seconds_in(tmp_path) == {}


def provenance(run: Path) -> dict:
    return json.loads((run / "provenance.json").read_text())


def test_commands_say_it_and_go_on_counting(command, tmp_path, capsys):
    run = tmp_path / "run"
    assert command("attack", steps=1)[0] == 0
    once = provenance(run)["stage_seconds"]
    assert set(once) == {"loading", "attack", "image", "score"}
    assert min(once.values()) > 0
    assert sum(once.values()) <= provenance(run)["wall_seconds"] + 0.05
    assert command("attack", steps=1)[0] == 0
    twice = provenance(run)["stage_seconds"]
    assert {k: twice[k] for k in ("attack", "image", "score")} == {
        k: once[k] for k in ("attack", "image", "score")
    }
    assert twice["loading"] > once["loading"]
    assert main(["status", str(run)]) == 0
    exact = seconds_in(run)["attack"]  # provenance.json has it rounded, and would be rounded once more
    assert f"time: attack {exact:.1f} s" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("options", "stages"),
    [
        ({"method": "nemo", "z": 1}, {"loading", "statistics", "units"}),
        ({"method": "nemo"}, {"loading", "statistics", "units", "nemo-threshold"}),
        ({"method": "wanda", "steps": 1, "sparsity": 0.2}, {"loading", "norms"}),
        ({"method": "esd", "set": "steps=1"}, {"loading", "training"}),
    ],
)
def test_a_mitigated_model_tells_what_it_cost(command, tmp_path, options, stages):
    assert command("mitigate", **options)[0] == 0
    assert set(provenance(tmp_path / "run")["stage_seconds"]) == stages
    assert set(read_status(tmp_path / "run").seconds) == stages
    assert [p.name for p in tmp_path.glob(".*")] == []
