"""Images from the web: what is asked for, what is refused, what is kept, and what is left out and named."""

import hashlib
import io
import json
import subprocess
import sys
import zlib
from pathlib import Path

import pandas as pd
import pytest
from conftest import one_line
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dori import fetched, web
from dori.benchmark import load_benchmark
from dori.cli import main
from dori.errors import DoriError
from dori.fetched import fetch_file, fetch_images

pytest_plugins = ["https"]


def png(colour: int = 0, size: tuple[int, int] = (16, 16)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (colour, 0, 0)).save(file, format="PNG")
    return file.getvalue()


def fetch(address: str, **options) -> Path | str:
    return fetch_images([address], **options)[address]


def test_an_image_is_asked_for_once_and_kept_by_its_content(the_web, tmp_path):
    one, two = the_web.put("/a.png", png()), the_web.put("/b.png", png())
    found = fetch_images([one, two, one])
    name = hashlib.sha256(png()).hexdigest()
    assert found == dict.fromkeys([one, two], tmp_path / "cache" / "images" / name)
    assert fetch_images([one, two]) == found
    assert the_web.asked == {"/a.png": 1, "/b.png": 1}
    assert [p.name for p in (tmp_path / "cache" / "images").iterdir()] == [name]


def test_a_damaged_image_of_the_cache_is_asked_for_again(the_web):
    address = the_web.put("/a.png", png())
    fetch(address).write_bytes(b"something else")
    assert fetch(address).read_bytes() == png()


def test_what_is_listed_as_http_is_asked_for_by_https(the_web):
    the_web.put("/a.png?b=1", png())
    assert fetch("http://pictures.example/a.png?b=1#part").read_bytes() == png()
    assert "only https" in fetch("http://pictures.example:8080/a.png")


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",
     "224.0.0.1", "255.255.255.255", "::1", "fe80::1", "fc00::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1",
     "2002:7f00:1::"],
)  # fmt: skip
def test_addresses_that_are_not_public_are_refused(the_web, address):
    the_web.addresses["inside.example"] = [address]
    assert "no public address" in fetch("https://inside.example/a.png")
    assert the_web.connected == []


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:4700::1111", "64:ff9b::5db8:d822"])
def test_public_addresses_are_not_refused(address):
    assert web.public(address)


def test_a_name_with_one_private_address_is_refused(the_web):
    the_web.addresses["inside.example"] = ["93.184.216.34", "10.0.0.1"]
    assert "10.0.0.1, which is no public address" in fetch("https://inside.example/a.png")
    assert the_web.connected == []


def test_the_address_that_was_checked_is_the_one_connected_to(the_web, monkeypatch):
    """A name that changes its address after the check gains nothing by it."""
    address, look_up = the_web.put("/a.png", png()), web.socket.getaddrinfo

    def changing(host, *more, **options):
        found = look_up(host, *more, **options)
        the_web.addresses[host] = ["10.0.0.1"]
        return found

    monkeypatch.setattr(web.socket, "getaddrinfo", changing)
    assert isinstance(fetch(address), Path)
    assert the_web.connected == ["93.184.216.34"]
    assert the_web.looked_up["pictures.example"] == 1


def test_redirections_are_followed_to_public_https_addresses(the_web):
    the_web.addresses["two.example"] = ["93.184.216.35"]
    the_web.put("/c.png", png())
    the_web.redirect("/b.png", "https://two.example/c.png")
    assert isinstance(fetch(the_web.redirect("/a.png", "/b.png")), Path)
    assert the_web.connected[-1] == "93.184.216.35"


@pytest.mark.parametrize(
    ("to", "reason"),
    [
        ("https://inside.example/a.png", "inside.example is at 169.254.169.254, which is no public address"),
        ("http://pictures.example/b.png", "which is not https"),
        ("file:///etc/passwd", "which is not https"),
        ("https://[::1", "no web address"),
        ("//[", "no web address"),
        ("/a.png", "more than 5 redirections"),
    ],
)
def test_redirections_to_elsewhere_are_refused(the_web, to, reason):
    the_web.addresses["inside.example"] = ["169.254.169.254"]
    the_web.put("/b.png", png())
    assert reason in fetch(the_web.redirect("/a.png", to))
    assert set(the_web.connected) == {"93.184.216.34"}


@pytest.mark.parametrize(
    "address", ["https://", "https://[::1", "ftp://pictures.example/a.png", "https://a:b/"]
)
def test_what_is_no_web_address_is_refused(address):
    with pytest.raises(web.Refused):
        web.https(address)


def test_a_certificate_for_another_name_is_no_answer(the_web):
    the_web.addresses["other.example"] = ["93.184.216.34"]
    assert "no answer" in fetch("https://other.example/a.png")
    assert the_web.asked == {}


@pytest.mark.parametrize("headers", [{}, {"Content_Length": "", "Connection": "close"}])
def test_a_file_that_is_too_large_is_refused(the_web, tmp_path, headers):
    address = the_web.put("/a.png", bytes(200_000), **headers)
    with pytest.raises(web.Refused, match="MB"):
        web.download(address, tmp_path / "a.png", limit=100_000)
    assert the_web.asked["/a.png"] == 1
    assert not (tmp_path / "a.png").exists() or (tmp_path / "a.png").stat().st_size <= 100_000


def test_a_file_may_come_in_pieces_of_unknown_number(the_web, tmp_path):
    body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (png()[:20], png()[20:])) + b"0\r\n\r\n"
    pieces = {"Transfer_Encoding": "chunked", "Content_Length": ""}
    assert fetch(the_web.put("/a.png", body, **pieces)).read_bytes() == png()
    endless = b"ffff\r\n" + bytes(0xFFFF) + b"\r\n"
    with pytest.raises(web.Refused, match="more than"):
        web.download(the_web.put("/b.png", endless * 9, **pieces), tmp_path / "b.png", limit=300_000)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    text=st.text(max_size=30), host=st.sampled_from(["", "pictures.example", "[::1]", "pictures.example:"])
)
def test_whatever_stands_after_https_is_fetched_or_refused(the_web, text, host):
    address = f"https://{host}{text}"
    if is_encodable(address):
        assert isinstance(fetch(address), str)


def is_encodable(text: str) -> bool:
    try:
        return bool(text.encode())
    except UnicodeEncodeError:
        return False


def test_a_slow_server_is_left(the_web, tmp_path):
    address = the_web.put("/a.png", png())
    with pytest.raises(web.Unreachable, match="not finished in time"):
        web.download(address, tmp_path / "a.png", seconds=-1)
    assert the_web.asked["/a.png"] == web.TRIES


def test_a_server_that_is_busy_is_asked_again_when_it_says(the_web, monkeypatch):
    pauses = []
    monkeypatch.setattr(web.time, "sleep", pauses.append)
    answers = {1: (503, {"Retry-After": "7"}, b""), 2: (429, {}, b""), 3: (200, {}, png())}
    the_web.answers["/a.png"] = answers.__getitem__
    assert isinstance(fetch("https://pictures.example/a.png"), Path)
    assert pauses == [7.0, 4.0]


def test_a_file_that_breaks_off_is_asked_for_again(the_web):
    answers = {1: (200, {"Content-Length": "9999"}, png()), 2: (200, {}, png())}
    the_web.answers["/a.png"] = answers.__getitem__
    assert fetch("https://pictures.example/a.png").read_bytes() == png()
    assert the_web.asked["/a.png"] == 2


def test_a_refusal_is_remembered_and_a_silence_is_not(the_web):
    gone, down = "https://pictures.example/gone.png", "https://nowhere.example/a.png"
    assert "404" in fetch(gone)
    assert "404" in fetch(gone)
    assert the_web.asked["/gone.png"] == 1
    assert "no address is known of nowhere.example" in fetch(down)
    the_web.addresses["nowhere.example"] = ["10.0.0.1"]
    assert "no public address" in fetch(down)
    the_web.put("/gone.png", png())
    assert isinstance(fetch(gone, again=True), Path)


def test_nobody_is_asked_twice_where_nobody_is(the_web):
    addresses = [f"https://nowhere.example/{n}.png" for n in range(20)]
    assert len(set(fetch_images(addresses).values())) == 1
    assert the_web.looked_up["nowhere.example"] == web.TRIES


@pytest.mark.parametrize(
    "content", [b"<html>", b"", png()[:50], b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
)
def test_what_is_no_image_is_refused(the_web, tmp_path, content):
    assert "not a readable image" in fetch(the_web.put("/a.png", content))
    assert list((tmp_path / "cache" / "images").iterdir()) == []


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def bomb(side: int = 20_000) -> bytes:
    """A PNG of side x side black pixels of one byte, in a few hundred kilobytes."""
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(bytes(side + 1)) for _ in range(side)) + packer.flush()
    header = side.to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


MEASURED = """
import resource, sys
from pathlib import Path
from dori.errors import DoriError
from dori.images import read_image
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
try:
    read_image(Path(sys.argv[1]), size=16)
except DoriError as error:
    print(peak() - before, error)
"""


def test_an_image_of_twenty_thousand_pixels_a_side_is_refused_in_little_memory(the_web, tmp_path):
    content = bomb()
    assert "pixels" in fetch(the_web.put("/a.png", content))
    (tmp_path / "a.png").write_bytes(content)
    said = subprocess.run(
        [sys.executable, "-c", MEASURED, tmp_path / "a.png"], capture_output=True, text=True, check=True
    )
    kilobytes, _, line = said.stdout.strip().partition(" ")
    assert "64000000" in line
    assert said.stderr == ""
    assert int(kilobytes) < 50_000  # its pixels would take 400 MB


def test_a_cache_that_cannot_be_written_is_one_line(the_web, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DORI_CACHE", str(tmp_path / "file"))
    with pytest.raises(DoriError, match=r"cannot be written .* set DORI_CACHE"):
        fetch(the_web.put("/a.png", png()))


def test_a_file_with_its_hash_is_fetched_once_and_only_if_it_is_that(the_web):
    address, wanted = the_web.put("/net.pt", b"weights"), hashlib.sha256(b"weights").hexdigest()
    path = fetch_file(f"{address}#sha256={wanted}")
    assert (path.name, path.read_bytes()) == ("net.pt", b"weights")
    assert fetch_file(f"{address}#sha256={wanted.upper()}") == path
    assert the_web.asked["/net.pt"] == 1
    with pytest.raises(DoriError, match=f"its sha256 is {wanted}"):
        fetch_file(f"{address}#sha256={'0' * 64}")
    with pytest.raises(DoriError, match="sha256sum"):
        fetch_file(address)
    with pytest.raises(DoriError, match="404"):
        fetch_file(f"https://pictures.example/none.pt#sha256={wanted}")


@pytest.fixture
def listed(the_web, tmp_path) -> Path:
    """Two images in the web, one that is gone, one on this disk."""
    (tmp_path / "d.png").write_bytes(png(9))
    images = [
        the_web.put("/a.png", png(1)),
        the_web.put("/b.png", png(2)),
        "https://pictures.example/c.png",
        "d.png",
    ]
    rows = [{"index": n, "caption": f"dawn {n}", "url": image} for n, image in enumerate(images)]
    (tmp_path / "listed.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "listed.jsonl"


def test_a_benchmark_has_its_images_from_the_web(listed):
    bench = load_benchmark(listed, strict=False)
    assert bench.ids == ["0", "1", "3"]
    assert bench.images()[:, 0, 0, 0].mul(255).round().tolist() == [1, 2, 9]
    assert bench.table["url"].tolist() == [
        "https://pictures.example/a.png",
        "https://pictures.example/b.png",
        "",
    ]
    (left,) = bench.skipped
    assert left.id == "2"
    assert left.reason.endswith(
        "line 3: image cannot be had (the server answers 404): https://pictures.example/c.png"
    )
    with pytest.raises(DoriError, match="line 3"):
        load_benchmark(listed)


def test_prompts_alone_ask_for_nothing(listed, the_web):
    assert len(load_benchmark(listed, images=False)) == 4
    assert the_web.asked == {}


@pytest.mark.parametrize("name", ["evaluate", "attack"])
def test_what_cannot_be_fetched_is_out_of_the_denominators_and_named(command, listed, tmp_path, name):
    options = {"steps": 1} | ({"init": "random"} if name == "attack" else {})
    code, out, err = command(name, benchmark=listed, preset="full", seeds=1, **options)
    assert code == 0, err
    assert "1 rows skipped" in " ".join(out.split())
    assert err.count("\n") == 1
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    found = summary["by_kind"]["verbatim"]
    assert (found if name == "evaluate" else found["1"])["mr"]["n"] == 3
    assert [row["id"] for row in summary["skipped"]["rows"]] == ["2"]
    assert "404" in summary["skipped"]["rows"][0]["reason"]
    assert set(pd.read_csv(tmp_path / "run" / "results.csv")["id"].astype(str)) == {"0", "1", "3"}


def test_a_benchmark_of_which_nothing_can_be_fetched_is_one_line(command, listed):
    listed.write_text(listed.read_text().splitlines()[2])
    assert "none of 1 rows can be used" in one_line(command("evaluate", benchmark=listed))


def test_an_interruption_asks_for_no_more(the_web, monkeypatch):
    addresses = [the_web.put(f"/{n}.png", png(n)) for n in range(50)]

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(fetched, "check_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch_images(addresses)
    assert sum(the_web.asked.values()) < 5


def test_a_benchmark_is_checked_and_taken_along(listed, tmp_path, capsys, the_web):
    (tmp_path / "d.png").write_bytes(b"no picture")
    assert main(["benchmark", str(listed), f"--out={tmp_path / 'taken'}"]) == 0
    out, err = capsys.readouterr()
    assert "left out 2" in " ".join(out.split())
    assert [line.count("left out") for line in err.splitlines()] == [1, 1]
    before = the_web.asked.total()
    taken = load_benchmark(tmp_path / "taken" / "benchmark.csv")
    assert taken.ids == ["0", "1"]
    assert taken.images()[:, 0, 0, 0].mul(255).round().tolist() == [1, 2]
    assert the_web.asked.total() == before
    the_web.put("/c.png", png(3))
    assert main(["benchmark", str(listed), f"--out={tmp_path / 'taken'}", "--again"]) == 0
    assert load_benchmark(tmp_path / "taken" / "benchmark.csv").ids == ["0", "1", "2"]


def test_a_directory_of_something_else_is_left_alone(listed, tmp_path, capsys):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("")
    assert main(["benchmark", str(listed), f"--out={tmp_path / 'taken'}"]) == 2
    assert "give another directory" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "taken").iterdir()] == ["mine.txt"]


def test_a_benchmark_does_not_write_over_itself(benchmark_csv, capsys):
    before = benchmark_csv.read_text()
    assert main(["benchmark", str(benchmark_csv), f"--out={benchmark_csv.parent}"]) == 2
    assert "would be written over" in capsys.readouterr().err
    assert benchmark_csv.read_text() == before


def test_what_fails_for_one_process_is_left_out_by_all(the_web, monkeypatch):
    """The second process has the image; the first could not get it, so neither may count it."""
    one, two = the_web.put("/a.png", png()), the_web.put("/b.png", png(1))
    monkeypatch.setattr(fetched.parallel, "first", lambda: False)
    monkeypatch.setattr(fetched.parallel, "gathered", lambda mine: [{two: "no answer"}, *mine])
    found = fetch_images([one, two])
    assert isinstance(found[one], Path)
    assert found[two] == "no answer"
