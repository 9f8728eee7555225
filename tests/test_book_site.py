"""The built site: check_site.py on planted faults, then the real pages (these need `make book`)."""

import json
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
import yaml
from bookbuild.pages import WORDS
from check_site import check_site

from dori.archive import TOUCHED
from dori.claims import load_claims
from dori.store import Record, RunStore

bs4 = pytest.importorskip("bs4", reason="beautifulsoup4 is not installed: pip install -e .[book]")

ROOT = Path(__file__).resolve().parents[1]
HTML = ROOT / "_build" / "html"
# Not shipped, and made again with what stands on it: the pictures of a score, NeMo's threshold.
ON_THE_WAY = {"image", "nemo-threshold"}
FIELDS = {"value", "low", "high", "n", "preset", "model", "commit", "cell"}

WIDGET = "application/vnd.jupyter.widget-view+json"

needs_book = pytest.mark.skipif(
    not (HTML / "index.html").exists(), reason="no built site: run `make book` first"
)


def mini_site(folder: Path, body: str) -> list[str]:
    (folder / "index.html").write_text(f"<html><body id='top'>{body}</body></html>")
    (folder / "other.html").write_text("<html><body><p id='here'>x</p><img src='a.png' alt=''></body></html>")
    (folder / "a.png").write_bytes(b"")
    return check_site(folder)


@pytest.mark.parametrize(
    "body",
    [
        "<a href='other.html#here'>x</a><a href='#top'>x</a><a href='#'>x</a>",
        "<img src='a.png' alt='a hill'>",
        "<a href='https://arxiv.org/abs/2507.16880'>paper</a>",
        "<img src='data:image/png;base64,AA' alt='a hill'>",
        "<link rel='canonical' href='https://example.org/'>",
    ],
)
def test_sound_pages_pass(body, tmp_path):
    assert mini_site(tmp_path, body) == []


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("<a href='gone.html'>x</a>", "leads nowhere: gone.html"),
        ("<a href='other.html#gone'>x</a>", "no such place on the page: other.html#gone"),
        ("<img src='a.png'>", "image without alternative text: a.png"),
        ("<img src='_images/f.png' alt='_images/f.png'>", "image without alternative text"),
        ("<script src='https://cdn.example.org/x.js'></script>", "asks another server"),
        ("<script src='//cdn.example.org/x.js'></script>", "asks another server"),
        ("<link rel='stylesheet' href='https://fonts.example.org/f.css'>", "asks another server"),
        ("<img src='https://example.org/a.png' alt='a hill'>", "asks another server"),
        ("<script src='_static/gone.js'></script>", "leads nowhere: _static/gone.js"),
    ],
)
def test_planted_faults_are_found(body, fault, tmp_path):
    faults = mini_site(tmp_path, body)
    assert any(fault in line and line.startswith("index.html") for line in faults), faults


def test_an_empty_site_is_a_fault(tmp_path):
    assert "no page was built" in check_site(tmp_path)[0]


@needs_book
def test_the_site_has_no_fault():
    vendored = (HTML / "_static" / "vendor" / "embed.js").exists()
    assert check_site(HTML, allow_outside=not vendored) == []


@needs_book
def test_no_chapter_shows_an_error():
    notebooks = sorted((ROOT / "_build" / "executed").glob("*.ipynb"))
    assert notebooks
    for path in notebooks:
        for cell in json.loads(path.read_text())["cells"]:
            kinds = [output["output_type"] for output in cell.get("outputs", [])]
            assert "error" not in kinds, f"{path.name}, cell {cell['id']}"


@needs_book
def test_pages_tell_nothing_of_the_building_machine():
    for path in [*HTML.rglob("*.html"), *HTML.rglob("*.ipynb")]:
        assert str(ROOT) not in path.read_text(encoding="utf-8"), path.name


@needs_book
def test_results_have_every_field_of_every_figure():
    results = json.loads((ROOT / "_build" / "results.json").read_text())
    executed = {path.stem for path in (ROOT / "_build" / "executed").glob("*.ipynb")}
    assert set(results) == executed - {"00_background"}, "a chapter that measures notes figures"
    for chapter, figures in results.items():
        assert all(set(figure) == FIELDS for figure in figures.values()), chapter


@needs_book
def test_every_figure_has_a_claim_or_words_and_every_word_a_figure():
    results = json.loads((ROOT / "_build" / "results.json").read_text())
    judged = {(claim.chapter, claim.metric) for claim in load_claims()}
    others = {name for chapter, named in results.items() for name in named if (chapter, name) not in judged}
    assert others == set(yaml.safe_load(WORDS.read_text(encoding="utf-8")))


@needs_book
def test_landing_page_shows_the_claims_table():
    page = (HTML / "index.html").read_text(encoding="utf-8")
    assert "claims with a rule" in page
    assert "#cell-" in page, "a figure leads to the cell that computed it"
    assert "Verdict" in page


@needs_book
def test_landing_page_has_its_figure_with_and_without_scripts():
    page = (HTML / "index.html").read_text(encoding="utf-8")
    assert WIDGET in page
    assert re.search(r'<noscript><img src="data:image/png;base64,[^"]{1000,}" alt="[^"]{20,}"', page)


def without_still(page: str) -> list[str]:
    """Sections of a page that hold a widget and no image that is there without scripts."""
    widgets = bs4.BeautifulSoup(page, "html.parser").find_all("script", type=WIDGET)
    sections = [widget.find_parent("section") for widget in widgets]
    return [section.get("id", "") for section in sections if not section.find("img", src=True)]


def test_a_widget_without_a_picture_is_noticed():
    widget = f"<script type='{WIDGET}'>{{}}</script>"
    page = f"<section id='a'>{widget}</section><section id='b'>{widget}<img src='b.png' alt='b'></section>"
    assert without_still(page) == ["a"]


@needs_book
def test_pages_show_a_still_picture_where_scripts_are_off():
    pages = {path.name: path.read_text(encoding="utf-8") for path in HTML.rglob("*.html")}
    found = {name: without_still(text) for name, text in pages.items() if WIDGET in text}
    assert len(found) >= 4, "the landing page and chapters have widgets"
    assert not {name: sections for name, sections in found.items() if sections}


def find_browser() -> str:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    browser = next((path for path in map(shutil.which, names) if path), None)
    if browser is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    modules = [ROOT / "node_modules" / name for name in ("playwright-core", "axe-core")]
    if shutil.which("node") is None or not all(module.exists() for module in modules):
        pytest.skip("playwright-core and axe-core are not installed: `make book` fetches them where npm is")
    return browser


@needs_book
def test_pages_work_in_a_browser_without_asking_anybody():
    """Light, dark and on a phone: no error, no outside request, no grave fault of axe's; widgets move."""
    command = ["node", str(ROOT / "tests" / "browser.mjs"), find_browser(), str(HTML)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout)
    assert report["pages"] >= 5
    assert report["faults"] == []
    assert report["sliders"] >= 5, "landing page, background and chapters have sliders"
    assert report["lists"] >= 3


def new_stages(run_dir: Path) -> set[str]:
    """Kinds of the records that the last run here asked for, made, and found in no archive.

    CI restores the run directories of earlier builds: what lies there under keys that nothing asks for any
    more is left out.
    """
    archives = [zipfile.ZipFile(path) for path in (ROOT / "data" / "records").glob("*.zip")]
    shipped = {name for archive in archives for name in archive.namelist()}
    asked = [f"{name}.json" for name in json.loads((run_dir / TOUCHED).read_text())]
    made = {name for name in asked if (run_dir / "records" / name).is_file()}
    return {name.split("/")[0] for name in made - shipped}


def test_records_that_only_an_earlier_run_asked_for_are_not_new(tmp_path):
    earlier, now = RunStore(tmp_path), RunStore(tmp_path)
    earlier.save("old", {"a": 1}, Record({}))
    earlier.note_touched()
    assert new_stages(tmp_path) == {"old"}
    now.save("new", {"a": 1}, Record({}))
    now.note_touched()
    assert new_stages(tmp_path) == {"new"}


@needs_book
def test_the_build_found_its_measurements_and_made_a_sample_again():
    """Of the bundled model at quick; a run of another size or with records none has nothing to compare."""
    runs = [json.loads(path.read_text()) for path in (ROOT / "_build" / "executed").glob("*.json")]
    runs = [run for run in runs if run["parameters"].get("records") == "shipped"]
    runs = [run for run in runs if run["parameters"]["preset"] == "quick" and run["measured"]["shipped"]]
    if not runs:
        pytest.skip("no chapter was built from shipped records")
    for run in runs:
        found = run["measured"]
        assert new_stages(ROOT / run["parameters"]["run_dir"]) <= ON_THE_WAY, (
            f"{run['chapter']}: make records"
        )
        assert found["agree"] >= 0.9 * found["again"], f"{run['chapter']}: {found}"
    assert sum(run["measured"]["again"] for run in runs)


@needs_book
def test_the_site_holds_the_assignments_and_no_solution():
    pages = [p for p in HTML.rglob("*") if p.suffix in {".html", ".ipynb", ".js", ".txt", ".md"}]
    notebooks = [p for p in pages if p.parent.parent.name == "_downloads" and p.suffix == ".ipynb"]
    assert len(notebooks) == 4
    leaking = [p.name for p in pages if "### BEGIN" in p.read_text(encoding="utf-8", errors="ignore")]
    assert not leaking
