"""`dori status` says how far a run is, while it runs, when it was stopped, and when it is done."""

import json
import os
import subprocess
import sys
import time

import pytest
from conftest import one_line

from dori.cli import main
from dori.status import ago, read_status
from dori.store import Record, RunStore


def said(capsys, run) -> str:
    assert main(["status", str(run)]) == 0
    return " ".join(capsys.readouterr().out.split())


def test_a_finished_evaluation(command, tmp_path, capsys, benchmark_csv):
    (benchmark_csv.parent / "3.png").write_bytes(b"no picture")
    assert command("evaluate")[0] == 0
    found = read_status(tmp_path / "run")
    assert found.state == "finished"
    assert [(s.name, s.kept, s.done, s.asked) for s in found.stages] == [
        ("image", 10, None, None),
        ("score", 5, 5, 5),
    ]
    assert list(found.left_out) == ["i3"]
    assert found.wall_seconds >= 0
    text = said(capsys, tmp_path / "run")
    for part in ("evaluate tiny: finished", "score 5 of 5", "left out 1", "torch 2", "not a readable image"):
        assert part in text


def test_an_attack_counts_searches_and_scores(command, tmp_path):
    assert command("attack", steps="1,2")[0] == 0
    stages = {s.name: (s.done, s.asked) for s in read_status(tmp_path / "run").stages}
    assert stages["attack"] == (8, 8)  # four images, two looks
    assert stages["score"] == (8, 8)


def test_a_run_that_was_stopped_says_how_far_it_came(command, tmp_path, monkeypatch, capsys):
    save = RunStore.save

    def interrupted(store, stage, *record):
        if stage == "score" and store.computed >= 14:
            raise KeyboardInterrupt
        return save(store, stage, *record)

    monkeypatch.setattr(RunStore, "save", interrupted)
    assert command("evaluate")[0] == 130
    store = RunStore(tmp_path / "run")
    about = json.loads((tmp_path / "run" / "progress.json").read_text())
    assert read_status(tmp_path / "run").state == "running"  # this very process
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / "run" / "progress.json").write_text(json.dumps(about | {"process": dead.pid}))
    text = said(capsys, store.directory)
    assert "evaluate tiny: stopped" in text
    assert "score 2 of 6" in text
    (tmp_path / "run" / "progress.json").write_text(json.dumps(about | {"host": "another"}))
    assert "started on another" in said(capsys, store.directory)


def test_what_gave_no_numbers_is_named_before_the_end(tmp_path):
    store = RunStore(tmp_path)
    store.announce(command="evaluate", left_out=[{"id": "a", "reason": "empty prompt"}])
    store.ask("score", [{"n": 1}, {"n": 2}, {"n": 3}])
    store.save("score", {"n": 1}, Record({"failed": "an image is not finite", "id": "b"}))
    found = read_status(tmp_path)
    assert found.left_out == {"a": "empty prompt", "b": "an image is not finite"}
    assert [(s.done, s.asked) for s in found.stages] == [(1, 3)]
    assert ago(found.last).endswith("seconds ago")


def test_status_can_be_asked_for_while_another_process_writes(tmp_path):
    program = (
        "from dori.store import RunStore, Record\n"
        f"store = RunStore({str(tmp_path / 'run')!r})\n"
        "store.announce(command='evaluate', model='tiny')\n"
        "for n in range(300):\n"
        "    store.ask('score', [{'n': k} for k in range(n + 1)])\n"
        "    store.save('score', {'n': n}, Record({'scores': [0.5]}))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process, seen = subprocess.Popen([sys.executable, "-c", program], env=environment), []
    until = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < until:
        if (tmp_path / "run" / "progress.json").is_file():
            found = read_status(tmp_path / "run")
            assert found.about["model"] == "tiny"  # whole, whenever it is read
            seen += [s.done for s in found.stages if s.done is not None]
    assert process.returncode == 0
    assert seen == sorted(seen)
    assert len(set(seen)) > 2


def test_a_mitigated_model_is_a_finished_run(command, tmp_path, capsys):
    assert command("mitigate", method="nemo", z=1)[0] == 0
    assert "mitigate" in said(capsys, tmp_path / "run")
    assert read_status(tmp_path / "run").state == "finished"


@pytest.mark.parametrize("name", ["none", "empty"])
def test_a_directory_without_a_run_is_one_line(tmp_path, capsys, name):
    (tmp_path / "empty").mkdir()
    assert "give the --out of dori evaluate" in one_line(
        (main(["status", str(tmp_path / name)]), *capsys.readouterr())
    )


def test_times_are_said_as_people_say_them(monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1_000_000.0)
    ages = {None: "never", 999_960: "40 seconds ago", 999_700: "5 minutes ago", 982_000: "5 hours ago"}
    assert {then: ago(then) for then in ages} == ages
