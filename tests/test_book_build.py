"""The builder: stable notebooks, execution only where something changed, honest verdicts."""

import dataclasses
import re
from pathlib import Path

import pytest

pytest.importorskip("papermill", reason="papermill is not installed: pip install -e .[book]")

import ipywidgets
import nbformat
import yaml
from bookbuild import (
    claims,
    commands,
    execute,
    facts,
    findings,
    landing,
    measured,
    pages,
    pictures,
    reference,
    results,
    site,
    stage,
)
from bookbuild import parameters as parameters_module
from bookbuild.layout import BuildError, Layout
from ipywidgets.embed import embed_data

from dori.attack import PAPER, dori_attack, initial_embeds
from dori.claims import load_claims, show_number
from dori.experiments.curing import _counted
from dori.known import KNOWN, memory
from dori.mitigation.adversarial import Adversarial
from dori.mitigation.nemo import Nemo
from dori.mitigation.signature import noise_differences
from dori.mitigation.wanda import wanda
from dori.study import Preset

ROOT = Path(__file__).resolve().parents[1]
KERNEL = "#   kernelspec: {name: python3, display_name: Python 3, language: python}\n"
HEADER = f"# ---\n# jupyter:\n{KERNEL}# ---\n"
PARAMETERS = '# %% tags=["parameters"]\nmodel = "testbed"\npreset = "quick"\nrun_dir = "x"\n'
CHAPTER = HEADER + "# %% [markdown]\n# # Title\n\n" + PARAMETERS + "\n# %%\nprint(preset)\n"


@pytest.fixture
def layout(tmp_path) -> Layout:
    """A checkout with one chapter that prints its preset."""
    for folder in ("notebooks", "dori", "data", "book"):
        (tmp_path / folder).mkdir()
    (tmp_path / "dori" / "study.py").write_text("A = 1\n")
    (tmp_path / "data" / "expected.yml").write_text("[]\n")
    (tmp_path / "notebooks" / "01_first.py").write_text(CHAPTER)
    return Layout(tmp_path)


def executor(layout: Layout, **wanted) -> execute.Executor:
    return execute.Executor(layout, wanted)


def parameters(layout: Layout, **wanted) -> dict:
    return executor(layout, **wanted).parameters("01_first")


def test_cell_ids_are_the_same_in_every_build(layout):
    source = layout.chapters()[0]
    first = stage.prepare_chapter(source, layout.prepared / "a.ipynb").read_text()
    assert stage.prepare_chapter(source, layout.prepared / "b.ipynb").read_text() == first


def test_only_declared_parameters_are_passed(layout):
    second = CHAPTER.replace('preset = "quick"', 'preset = "quick"\nextra = 1')
    (layout.notebooks / "02_second.py").write_text(second)
    assert "extra" not in parameters(layout, extra=2)
    assert executor(layout, extra=2).parameters("02_second")["extra"] == 2


def test_a_parameter_of_no_chapter_is_refused(layout):
    with pytest.raises(BuildError, match="no chapter has a parameter 'sed'"):
        parameters(layout, sed=1)


def test_the_run_directory_is_named_by_chapter_and_preset(layout):
    assert parameters(layout, preset="smoke")["run_dir"] == "_build/runs/01_first/smoke"
    assert parameters(layout, run_dir="mine")["run_dir"] == "mine"


def test_code_of_the_package_causes_a_new_run(layout):
    before = executor(layout).shared
    (layout.root / "dori" / "study.py").write_text("A = 2\n")
    assert executor(layout).shared != before


def test_the_rules_for_verdicts_cause_a_new_run_as_chapters_show_them(layout):
    before = executor(layout).shared
    (layout.data / "expected.yml").write_text("[] # changed\n")
    assert executor(layout).shared != before


def test_a_chapter_runs_once_and_again_after_a_change(layout, capsys):
    source = layout.chapters()[0]
    first = executor(layout, preset="smoke").run(source)
    notebook = nbformat.read(layout.executed / "01_first.ipynb", 4)
    assert "smoke" in str(notebook.cells[-1].outputs)
    assert "papermill" not in notebook.metadata
    injected = next(cell for cell in notebook.cells if cell["id"] == execute.INJECTED)
    assert "hide-input" in injected.metadata.tags
    assert executor(layout, preset="smoke").run(source) == first
    assert "unchanged" in capsys.readouterr().out
    source.write_text(CHAPTER.replace("print(preset)", "print(1 / 0)"))
    with pytest.raises(BuildError, match=r"In \[3\](?s:.*)print\(1 / 0\)(?s:.*)ZeroDivisionError"):
        executor(layout, preset="smoke").run(source)
    assert (layout.build / "failed" / "01_first.ipynb").exists()
    assert execute.read_record(layout, "01_first") == first, "a failed run leaves the last good one"


def test_chapters_run_side_by_side_and_the_first_fault_ends_the_build(layout):
    wait = (
        "import time\nend = time.monotonic() + 120\n"
        "while not pathlib.Path(%r).exists() and time.monotonic() < end: time.sleep(0.1)\n"
        "assert time.monotonic() < end, 'the other chapter does not run'"
    )
    marks = [layout.root / "dori" / name for name in ("1", "2")]
    for number, own, other in (("01_first", *marks), ("02_second", *reversed(marks))):
        cell = f"import pathlib\npathlib.Path({str(own)!r}).touch()\n" + wait % str(other)
        (layout.notebooks / f"{number}.py").write_text(CHAPTER.replace("print(preset)", cell))
    execute.Executor(layout, {}, at_once=2).run_all(layout.chapters())
    records = execute.read_records(layout)
    assert [r["chapter"] for r in records] == ["01_first", "02_second"]
    assert {r["at_once"] for r in records} == {2}
    (layout.notebooks / "02_second.py").write_text(CHAPTER.replace("print(preset)", "print(1 / 0)"))
    with pytest.raises(BuildError, match=r"02_second: (?s:.*)ZeroDivisionError"):
        execute.Executor(layout, {}, at_once=2).run_all(layout.chapters())
    assert execute.read_record(layout, "02_second") == records[1], "a failed run leaves the last good one"


def test_chapters_share_the_cores_unless_the_model_is_another(monkeypatch):
    import build

    monkeypatch.setattr(build, "CORES", 2)
    assert build.chapters_at_once({}) == build.chapters_at_once({"model": "testbed", "device": "cpu"}) == 2
    assert build.chapters_at_once({"model": "sd14"}) == build.chapters_at_once({"device": "cuda"}) == 1


def test_bad_input_of_a_chapter_is_one_clear_line_and_the_cell(layout):
    source = layout.chapters()[0]
    fault = "class DoriError(Exception): pass\nraise DoriError('no model x')"
    source.write_text(CHAPTER.replace("print(preset)", fault))
    with pytest.raises(BuildError) as stop:
        executor(layout).run(source)
    first, number, *cell, last = str(stop.value).splitlines()
    assert first == "01_first: no model x"
    assert number == "Cell [3]:", "parameters, those of this run, and the cell that fails"
    assert [line.strip() for line in cell] == fault.splitlines()
    assert last.endswith("_build/failed/01_first.ipynb")


def test_unknown_chapter_is_one_clear_line(layout):
    with pytest.raises(BuildError, match=r"no chapter starts with .09.*01_first"):
        layout.chapters("09")


def claim(**changes) -> dict:
    row = {
        "chapter": "01_first",
        "id": "c",
        "claim": "memorized prompts return their image",
        "paper": {"value": 0.98, "source": "Table 1"},
        "rule": {"metric": "mr", "op": ">=", "value": 0.95},
        "preset": "quick",
    }
    return row | changes


def verdict(figure: dict | None, tmp_path: Path, **changes) -> claims.Verdict:
    path = tmp_path / "expected.yml"
    path.write_text(yaml.safe_dump([claim(**changes)]))
    return claims.decide_all(path, {"01_first": {"mr": figure} if figure else {}})[0]


def test_verdicts_follow_the_rule_and_show_an_open_interval(tmp_path):
    figure = {"value": 0.97, "low": 0.9, "high": 1.0, "preset": "quick"}
    assert verdict(figure, tmp_path).status == "replicates"
    assert verdict(figure, tmp_path).open_interval
    assert not verdict(figure | {"low": 0.96}, tmp_path).open_interval
    assert verdict(figure | {"value": 0.5}, tmp_path).status == "does not replicate"
    assert verdict(None, tmp_path).status == "not measured"
    assert verdict({"value": None, "preset": "quick"}, tmp_path).status == "not measured"


def test_a_smaller_preset_settles_nothing_and_the_table_says_so(tmp_path):
    found = verdict({"value": 0.97, "low": 0.9, "high": 1.0, "n": 2, "preset": "smoke"}, tmp_path)
    assert pages.verdict_says(found) == "– not measured at preset quick"


@pytest.mark.parametrize("chapter", ["1", 1, "01", "01_first"])
def test_a_claim_may_name_its_chapter_by_number(chapter, tmp_path):
    assert verdict({"value": 1.0, "preset": "quick"}, tmp_path, chapter=chapter).status == "replicates"


def test_expected_yml_of_this_study_is_sound():
    found = load_claims(ROOT / "data" / "expected.yml")
    assert found, "data/expected.yml holds no claim"
    assert len({c.id for c in found}) == len(found), "an id is used twice"
    chapters = {claims.chapter_number(path.stem) for path in Layout(ROOT).chapters()} - {"00"}  # background
    assert {claims.chapter_number(c.chapter) for c in found} >= chapters, "a chapter without claims"


def test_a_run_keeps_the_figures_the_chapter_noted_and_no_old_ones(layout):
    figure = dict.fromkeys(results.FIELDS) | {"value": 0.5, "n": 10}
    written = f"write_text(json.dumps({{'mr': {figure!r}}}))"
    note = f"import json, pathlib\npathlib.Path(run_dir, 'headlines.json').{written}"
    run = layout.runs / "01_first" / "quick"
    run.mkdir(parents=True)
    (run / "headlines.json").write_text('{"old": {}}')
    source = layout.chapters()[0]
    source.write_text(CHAPTER.replace("print(preset)", note))
    record = executor(layout, preset="quick").run(source)
    assert results.gather([record]) == {"01_first": {"mr": figure}}


def test_broken_headlines_are_named(tmp_path):
    (tmp_path / "headlines.json").write_text('{"mr": {"value": 1}}')
    with pytest.raises(BuildError, match=r"'mr' has no .*preset"):
        results.read_headlines(tmp_path / "headlines.json")


def test_claims_table_escapes_bars_and_counts(tmp_path):
    asked = [verdict(None, tmp_path, claim="a | b")]
    text = pages.claims_part(asked, ["01_first"])
    assert "a \\| b" in text
    assert "notebooks/01_first.ipynb" in text
    counted = pages.verdicts_part(asked, {"01_first": "A title"})
    assert counted.startswith(
        "The paper's claims with a rule: 0, of which 0 hold in this build, 0 do not, 0 were not measured. "
        "Our own checks, conditions and controls: 1, of which 0 hold in this build, 0 do not, "
        "1 was not measured."
    )
    assert "[A title](notebooks/01_first.ipynb) | none | 1 – |" in counted


def found(tmp_path, **values):
    """Verdicts by claim id (rule: at least 0.95); "own_" ids are checks of this study."""
    rows = [claim(id=i, metric=i, rule=claim()["rule"] | {"metric": i}) for i in values]
    for row in rows:
        own = row["id"].startswith("own_")
        row["paper"] = {"value": None if own else 0.98, "source": "own" if own else "paper, table 1"}
    (tmp_path / "expected.yml").write_text(yaml.safe_dump(rows))
    figures = {i: {"value": v, "low": v, "high": v, "n": 8, "preset": "quick", "cell": 3}
               for i, v in values.items() if v is not None}  # fmt: skip
    return claims.decide_all(tmp_path / "expected.yml", {"01_first": figures})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"a": 1.0, "own_b": 1.0}, "It holds here.** Claims of the paper that replicate: 1 of 1; checks"),
        (
            {"a": 1.0, "own_b": 0.0},
            "not all of our own checks agree.** Claims of the paper that replicate: 1 of 1",
        ),
        ({"a": 1.0, "b": 0.5}, "It holds here in part.** Claims of the paper that replicate: 1 of 2."),
        ({"a": 0.0, "own_b": 1.0}, "It does not hold here.**"),
        ({"a": None, "own_b": 1.0}, "Not measured in this build."),
    ],
)
def test_a_statement_is_weighed_by_all_that_bears_on_it(values, words, tmp_path):
    assert words in findings.weighed(found(tmp_path, **values))


def test_the_landing_page_says_in_words_what_was_found_and_what_was_not(tmp_path):
    known = {v.claim.id: v for v in found(tmp_path, a=0.5, own_b=1.0, c=1.0)}
    statement = findings.Statement("Title.", ("a", "own_b"), ("c",))
    first, _, *lines = findings.found_part(statement, known, {"01": "01_first"}).splitlines()
    assert "1 of 2" in first, "what is not listed is counted"
    link = '<a href="notebooks/01_first.html#cell-3">0.50 [0.50, 0.50], n = 8</a>'
    assert lines[0] == f"- ✗ does not replicate: {claim()['claim']} {link} (the paper: 0.98)"
    assert lines[1].endswith("n = 8</a> (our check)")
    assert len(lines) == 2


def test_the_first_screen_has_a_row_for_each_statement(tmp_path, monkeypatch):
    statement = findings.Statement("Title.", ("a",), ("own_b", "own_gone"))
    monkeypatch.setattr(findings, "STATEMENTS", {"x": statement})
    verdicts = found(tmp_path, a=0.5, own_b=1.0, own_gone=None)
    row = findings.answers_part(verdicts, ["01_first"]).splitlines()[2]
    link = '<a href="notebooks/01_first.html#cell-3">0.50 [0.50, 0.50], n = 8</a>'
    cells = [f"**Title.** {claim()['claim']}", "0.98", link, "✗ does not replicate"]
    assert row == f"| {' | '.join(cells)} | 0 of 1 claims, 1 of 1 checks |"


def test_the_landing_page_has_the_statements_by_their_titles():
    page = (ROOT / "book" / "index.md").read_text(encoding="utf-8")
    titles = re.findall(r"^\d\. \*\*(.+?)\*\*", page, re.M)
    assert titles == [s.title for s in findings.STATEMENTS.values()]


def test_every_claim_of_chapters_2_to_4_that_the_paper_makes_bears_on_a_statement():
    bearing = [i for s in findings.STATEMENTS.values() for i in (*s.listed, *s.others)]
    asked = load_claims(ROOT / "data" / "expected.yml")
    assert set(bearing) <= {c.id for c in asked}
    assert len(set(bearing)) == len(bearing)
    later = {c.id for c in asked if claims.chapter_number(c.chapter) != "01"}
    assert later - set(bearing) == {"original"}, (
        "that the prompt works before pruning is chapter 1's finding, too"
    )


def test_the_page_says_how_much_was_read_and_how_much_was_made():
    one = {"shipped": 90, "new": 2, "again": 4, "agree": 3, "largest": 0.1}
    records = [{"chapter": "01_first", "measured": one}, {"chapter": "00_none", "measured": None}]
    assert measured.origin_part(
        [*records, {"chapter": "02", "measured": one | {"again": 8, "agree": 8}}]
    ) == (
        "Of 196 measurements, 180 were read from records that come with the book; 12 that come with it, too, "
        "were made again as a check, and 11 of these agree; 4 are new.\n"
    )
    assert measured.origin_part([]).startswith("No chapter")
    limits = measured.repeated_part()
    assert f"{100 * execute.ENOUGH:.0f} %" in limits
    assert f"within {execute.SAME:g} " in limits


def test_how_far_two_measurements_lie_apart_has_no_exponent():
    assert [measured.difference(d) for d in (0.0, 6.5e-05, 0.00022, 0.1)] == [
        "0", "below 0.0001", "0.0002", "0.1000",
    ]  # fmt: skip


def test_a_headline_figure_stands_beside_the_claim_that_it_judges(tmp_path):
    figure = {"value": 0.97, "low": 0.9, "high": 1.0, "n": 32, "preset": "quick", "model": "m", "cell": None}
    asked = verdict(figure, tmp_path)
    one = {"01_first": {asked.claim.metric: figure, "other": figure}}
    text = pages.figures_part(one, [asked])
    assert text.startswith("All with preset `quick`, model `m`.\n\n| Chapter | Name |")
    assert f"| `{asked.claim.metric}` | 0.97 [0.90, 1.00], n = 32 | {asked.claim.claim} |" in text
    assert "| `other` | 0.97 [0.90, 1.00], n = 32 |  |" in text
    assert "| 0.97 [0.90, 1.00], n = 32 | Median best" in pages.figures_part(
        {"01_first": {"score_top": figure}}
    )
    two = pages.figures_part(one | {"02_second": {"x": figure | {"preset": "full"}}})
    assert two.startswith("All with model `m`.")
    assert "| full |" in two


def test_the_papers_source_has_no_brackets_within_brackets(tmp_path):
    paper = {"value": 0.2, "source": "paper, NeMo (secondary notes; or 0.02)"}
    said = pages.paper_says(verdict(None, tmp_path, paper=paper).claim)
    assert said == "0.20 (paper, NeMo, secondary notes; or 0.02)"


def test_a_claim_leads_to_the_cell_that_computed_its_figure(tmp_path):
    figure = {"value": 0.97, "low": 0.9, "high": 1.0, "n": 32, "preset": "quick", "cell": 12}
    text = pages.claims_part([verdict(figure, tmp_path)], ["01_first"])
    assert '<a href="notebooks/01_first.html#cell-12">0.97 [0.90, 1.00], n = 32</a>' in text
    assert "<a " not in pages.claims_part([verdict(figure | {"cell": None}, tmp_path)], ["01_first"])


@pytest.mark.parametrize(
    ("value", "shown"), [(0.9712, "0.97"), (1.0, "1.00"), (0.00123, "0.00123"), (512, "512"), (None, "–")]
)
def test_numbers_are_shown_with_the_digits_they_carry(value, shown):
    assert show_number(value) == shown


@pytest.mark.parametrize(
    ("value", "low", "high", "shown"),
    [
        (0.97, 0.91, 1.0, "0.97 [0.91, 1.00]"),
        (-0.0134, -0.0241, -0.00371, "−0.0134 [−0.0241, −0.0037]"),
        (0.0301, 0.00944, 0.0509, "0.030 [0.009, 0.051]"),
        (0.05, 0.0, 0.05, "0.05 [0.00, 0.05]"),
        (0.3, -0.00001, 3, "0.3000 [0.0000, 3.0000]"),
        (512, 480, 530, "512 [480, 530]"),
        (0.00424, None, None, "0.00424"),
    ],
)
def test_a_figure_and_its_bounds_have_the_same_decimals_and_none_looks_like_the_rule(value, low, high, shown):
    assert results.show({"value": value, "low": low, "high": high}, 0.05) == shown


def test_configuration_without_npm_and_without_an_address(tmp_path):
    (tmp_path / "_build").mkdir()
    (tmp_path / "_config.yml").write_text((ROOT / "_config.yml").read_text())
    path = site.configure(Layout(tmp_path), vendored=False, repository=None)
    config = yaml.safe_load(path.read_text())
    assert "mathjax_path" not in config["sphinx"]["config"]
    assert "launch_buttons" not in config
    config = yaml.safe_load(
        site.configure(Layout(tmp_path), vendored=True, repository=("me", "dori")).read_text()
    )
    assert config["html"]["baseurl"] == "https://me.github.io/dori/"
    assert config["repository"]["branch"] == site.PUBLISHED
    assert set(config["launch_buttons"]) == {"notebook_interface", "binderhub_url", "colab_url"}


def test_a_class_names_its_jupyterhub(tmp_path):
    (tmp_path / "_build").mkdir()
    (tmp_path / "_config.yml").write_text((ROOT / "_config.yml").read_text())
    environment = {site.HUB: "https://hub.example.org"}
    asked = {"vendored": True, "repository": ("me", "dori"), "environment": environment}
    config = yaml.safe_load(site.configure(Layout(tmp_path), **asked).read_text())
    assert config["launch_buttons"]["jupyterhub_url"] == "https://hub.example.org"


def test_a_chapter_shows_a_table_of_its_parameters(layout):
    described = CHAPTER.replace('preset = "quick"', 'preset = "quick"  # size of the run: smoke | quick')
    (layout.notebooks / "01_first.py").write_text(described)
    path = stage.prepare_chapter(layout.chapters()[0], layout.prepared / "01_first.ipynb")
    cells = nbformat.read(path, 4).cells
    behind = next(n for n, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", [])) + 1
    assert cells[behind].cell_type == "markdown"
    assert '| `preset` | `"quick"` | size of the run: smoke \\| quick |' in cells[behind].source
    assert execute.declared_parameters(path)["preset"] == "quick"


def test_the_guide_shows_what_all_chapters_take(layout):
    (layout.notebooks / "02_second.py").write_text(
        CHAPTER.replace('run_dir = "x"', 'run_dir = "y"\nextra = 1')
    )
    prepared = [
        stage.prepare_chapter(path, layout.prepared / f"{path.stem}.ipynb") for path in layout.chapters()
    ]
    shared = parameters_module.common(prepared)
    assert [p.name for p in shared] == ["model", "preset", "run_dir"]
    assert shared[-1].default == "by chapter"


def widget_notebook(path: Path, *, tag: str = "landing") -> None:
    """A chapter with two figures of a slider and a stack each; the first is tagged."""
    figures = [
        ipywidgets.VBox([ipywidgets.IntSlider(description=name), ipywidgets.Stack([ipywidgets.HTML("a")])])
        for name in ("wanted", "other")
    ]
    for figure in figures:
        ipywidgets.jslink((figure.children[0], "value"), (figure.children[1], "selected_index"))
    state = {landing.STATE: {"state": {}, "version_major": 2, "version_minor": 0}}
    for figure in figures:
        state[landing.STATE]["state"] |= embed_data(figure)["manager_state"]["state"]
    cells = [
        nbformat.v4.new_code_cell(
            "show()",
            metadata={"tags": [tag] if n == 0 else []},
            outputs=[nbformat.v4.new_output("display_data", {landing.VIEW: {"model_id": figure.model_id}})],
        )
        for n, figure in enumerate(figures)
    ]
    still = {"mystnb": {"figure": {"name": landing.STILL}}}
    picture = nbformat.v4.new_output("display_data", {"image/png": "aGk="})
    cells.append(nbformat.v4.new_code_cell("plot()", metadata=still, outputs=[picture]))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"kernelspec": kernel, "widgets": state}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), path)


def test_the_landing_page_takes_over_one_figure_with_its_links(layout):
    layout.src.mkdir(parents=True)
    front = "---\nmyst:\n  html_meta: {description: x}\n---\n\n"
    (layout.src / "index.md").write_text(f"{front}# Title\n\n{landing.MARK}\n\nbelow\n")
    widget_notebook(layout.executed / f"{landing.SOURCE}.ipynb")
    landing.make_landing(layout)
    assert not (layout.src / "index.md").exists()
    page = nbformat.read(layout.src / "index.ipynb", 4)
    text = str(page.metadata["widgets"])
    assert "wanted" in text
    assert "other" not in text
    kinds = [model["model_name"] for model in page.metadata["widgets"][landing.STATE]["state"].values()]
    assert kinds.count("LinkModel") == 1
    assert page.metadata["myst"]["html_meta"]["description"] == "x"
    assert "<noscript><img" in page.cells[1].outputs[1].data["text/html"]
    nbformat.validate(page)


def test_a_landing_page_without_its_chapter_stays_a_page(layout):
    layout.src.mkdir(parents=True)
    (layout.src / "index.md").write_text(f"# Title\n\n{landing.MARK}\n")
    landing.make_landing(layout)
    assert landing.MARK not in (layout.src / "index.md").read_text()


def test_a_chapter_without_the_figure_is_named(layout):
    layout.src.mkdir(parents=True)
    (layout.src / "index.md").write_text(landing.MARK)
    widget_notebook(layout.executed / f"{landing.SOURCE}.ipynb", tag="something")
    with pytest.raises(BuildError, match=r"has no cell tagged 'landing'"):
        landing.make_landing(layout)


def test_the_reference_has_every_module_of_the_package(tmp_path):
    reference.write_reference(tmp_path)
    pages = {path.stem: path.read_text() for path in (tmp_path / reference.FOLDER).glob("*.rst")}
    documented = set(re.findall(r"automodule:: (\S+)", "".join(pages.values())))
    sources = [path.relative_to(ROOT).with_suffix("") for path in (ROOT / "dori").rglob("*.py")]
    names = {".".join(path.parts).removesuffix(".__init__") for path in sources}
    apart = ("dori.plots.",)  # reached through dori.plots
    wanted = {
        name for name in names if not name.startswith(apart) and not name.rsplit(".", 1)[-1].startswith("_")
    }
    assert documented >= {name for name in wanted if name.rsplit(".", 1)[-1] != "cli"} - {"dori"}
    assert not {name for name in documented if name.endswith(".cli")}, "they have a page of their own"
    index = pages.pop("index")
    assert re.findall(r"^- :doc:`(\w+)`: \w", index, re.M) == list(reference.groups())
    assert set(pages) == set(reference.groups())
    assert all("automodule" in page for page in pages.values()), "no page is empty"
    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
    assert {f"api/{name}" for name in pages} <= set(re.findall(r"api/\w+", str(toc)))


def test_the_command_line_reference_has_every_command():
    text = commands.commands_part()
    for command in ("evaluate", "attack", "mitigate", "check", "testbed plant"):
        assert f"## `dori {command}`" in text
    assert not re.search(r"^\* `[a-z]+`: .*\.\.\.$", text, re.M), "no summary is cut"


def test_links_of_the_card_lead_nowhere_on_the_site_and_become_text(layout):
    (layout.data / "testbed").mkdir()
    (layout.data / "testbed" / "README.md").write_text(
        "[log](training_log.csv), [paper](https://arxiv.org/abs/1)"
    )
    (layout.src / "generated").mkdir(parents=True)
    stage.stage_card(layout)
    assert (
        layout.src / "generated" / "testbed_card.md"
    ).read_text() == "log, [paper](https://arxiv.org/abs/1)"


def test_unknown_preset_is_a_usage_error(capsys):
    import build

    with pytest.raises(SystemExit) as stop:
        build.parse_arguments(["--preset", "tiny"])
    assert stop.value.code == 2
    assert "invalid choice" in capsys.readouterr().err


def test_a_claim_without_its_figure_is_named(tmp_path):
    found = verdict(None, tmp_path)
    assert claims.unmeasured([found], {"01_first": {"other": {}}}) == [
        "01_first: no figure 'mr' for the claim 'c'"
    ]
    assert claims.unmeasured([found], {}) == [], "a chapter that did not run owes nothing"


def test_the_landing_page_shows_a_figure_of_the_executed_chapter(tmp_path):
    picture = nbformat.v4.new_output("display_data", {"image/png": "aGk="})
    metadata = {"mystnb": {"figure": {"name": "fig-a"}}}
    cell = nbformat.v4.new_code_cell("plot()", metadata=metadata, outputs=[picture])
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "01.ipynb")
    assert pictures.chapter_figure(tmp_path / "01.ipynb", "fig-a") == b"hi"
    assert pictures.chapter_figure(tmp_path / "02.ipynb", "fig-a") is None
    with pytest.raises(BuildError, match="has no figure 'fig-b'"):
        pictures.chapter_figure(tmp_path / "01.ipynb", "fig-b")


def test_memory_names_the_smallest_gpu_that_holds_the_weights():
    rows = dict(re.findall(r"^\| `([^`]+)` \| (.+) \|$", facts.memory_part(), re.M))
    assert set(rows) == set(KNOWN)
    for name, cells in rows.items():
        cells = [re.fullmatch(r"([\d.]+) \((\d+ GB|none)\)", cell) for cell in cells.split(" | ")]
        half, whole, tuning = cells
        assert float(whole[1]) == round(memory(name) / 1e9, 1)
        assert float(half[1]) == pytest.approx(float(whole[1]) / 2, abs=0.06)
        assert float(tuning[1]) > float(whole[1])
        for cell in cells:
            size, gpu = (
                float(cell[1]),
                float("inf") if cell[2] == "none" else int(cell[2].removesuffix(" GB")),
            )
            assert size <= 0.8 * gpu + 0.05
            assert all(size >= 0.8 * smaller - 0.05 for smaller in facts.GPUS if smaller < gpu)


def test_the_guide_explains_every_setting_of_a_preset():
    fields = {field.name for field in dataclasses.fields(Preset)} - {"name"}
    assert set(facts.SETTINGS) == fields
    assert "`quick`" in facts.presets_part()


def test_limits_and_columns_are_those_of_the_code(monkeypatch):
    monkeypatch.setattr("dori.web.MAX_BYTES", 7_000_000)
    monkeypatch.setattr("dori.web.REDIRECTS", 9)
    limits = dict(re.findall(r"^\| (\w+) \| (.+) \|$", facts.limits_part(), re.M))
    assert (limits["Size"], limits["Redirections"]) == ("at most 7 MB", "at most 9")
    assert "| `id` | `index` |" in facts.columns_part()
    assert "| `template` in `kind` | `TM`, `TV` |" in facts.columns_part()


def test_rows_of_each_stage_are_those_that_go_through_the_denoiser(tiny_model, monkeypatch):
    as_sd = {"num_inference_steps": 50, "guidance_scale": 7.0}
    monkeypatch.setattr(tiny_model, "defaults", dataclasses.replace(tiny_model.defaults, **as_sd))
    monkeypatch.setattr(
        "dori.attack.max_batch", lambda *given, **more: 8
    )  # its one row that feels for memory
    model, told = tiny_model, facts.passes()
    embeds = model.encode_prompts(["dawn lake"])

    def rows(work) -> int:
        with _counted(model.unet) as found:
            work()
        return sum(found)

    start = initial_embeds(model, "random", prompts=[], seeds=[0])
    latents = model.initial_latents([0])
    assert rows(lambda: model.sample(embeds, [0])) == told["painting"][0]
    assert rows(lambda: dori_attack(model, latents, start, PAPER, seeds=[0])) == told["attack"][0]
    noises = Nemo().noise
    looked = rows(lambda: noise_differences(model, embeds.expand(len(noises), -1, -1), noises))
    assert looked == told["nemo"][0]
    assert rows(lambda: wanda(model, embeds)) == told["wanda"][0]
    assert told["adversarial"][0] == told["attack"][0]
    assert "| Wanda | 40 |" in facts.passes_part()


def test_what_limits_the_processes_of_a_training_is_read_off_its_settings():
    told = facts.rows_part()
    own = Adversarial()
    assert f"| `at-once` | images of a round | {own.at_once} |" in told
    assert f"up to {min(own.at_once * own.starts * own.draws, own.retain)} processes" in told
