"""Networks that measure, given by path or by address with its hash: SSCD, Inception, CLIP."""

import functools
import hashlib
import json

import pandas as pd
import pytest
import torch
from conftest import one_line
from networks import Descriptor, Net
from torch import nn

from dori.errors import DoriError
from dori.fetched import WITH_HASH
from dori.metrics.copy import load_descriptor
from dori.metrics.fidelity import load_features
from dori.metrics.inception import Inception

pytest_plugins = ["https"]


@pytest.fixture
def inception_file(tmp_path):
    path = tmp_path / "inception-2015-12-05.pt"
    torch.jit.script(Net()).save(str(path))
    return path


def test_inception_is_given_images_as_clean_fid_gives_them(inception_file):
    net = Inception.load(inception_file)
    assert net.name == "inception-2015-12-05"
    images = torch.stack([torch.full((3, 20, 30), v) for v in (0.0, 128 / 255, 1.0)])
    found = net.embed_images(images, batch_size=2)
    assert found.shape == (3, 2048)
    assert found[:, 0].tolist() == pytest.approx([-1, 0, 127 / 128], abs=1e-6)


def test_a_file_that_is_not_inception_is_one_line(tmp_path):
    with pytest.raises(DoriError, match="are not here: fetch https://nvlabs"):
        load_features(str(tmp_path / "none.pt"))
    (tmp_path / "broken.pt").write_bytes(b"broken")
    with pytest.raises(DoriError, match="not Inception's TorchScript file"):
        load_features(str(tmp_path / "broken.pt"))
    torch.jit.script(Net(64)).save(str(tmp_path / "small.pt"))
    with pytest.raises(DoriError, match=r"features of shape \(1, 64\)"):
        load_features(str(tmp_path / "small.pt"))


def test_sscd_is_fetched_with_its_hash(the_web, tmp_path):
    file = tmp_path / "sscd_disc_mixup.torchscript.pt"
    torch.jit.script(Descriptor()).save(str(file))
    address = the_web.put(f"/{file.name}", file.read_bytes())
    known = f"{address}#sha256={hashlib.sha256(file.read_bytes()).hexdigest()}"
    fetched, local = load_descriptor(known), load_descriptor(file)
    assert (fetched.name, fetched.threshold) == ("sscd_disc_mixup", 0.7)
    assert fetched.fingerprint == local.fingerprint
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(fetched.embed(images), local.embed(images))
    with pytest.raises(DoriError, match="sha256"):
        load_descriptor(address)


@pytest.mark.parametrize(("load", "name"), [(load_descriptor, "sscd"), (load_features, "inception")])
def test_published_networks_are_named_with_address_and_hash(monkeypatch, tmp_path, load, name):
    asked = []

    def fetch(address):
        asked.append(address)
        raise DoriError("no network")

    for module in ("copy", "inception"):
        monkeypatch.setattr(f"dori.metrics.{module}.fetch_file", fetch)
    with pytest.raises(DoriError, match="no network"):
        load(name)
    assert WITH_HASH.fullmatch(asked[0])


@pytest.mark.parametrize("net", [nn.Conv2d(3, 4, 3), nn.Linear(3, 4)])
def test_torchscript_that_is_no_descriptor_is_one_line(tmp_path, net):
    torch.jit.script(net).save(str(tmp_path / "net.pt"))
    with pytest.raises(DoriError, match=r"net\.pt: (gives|takes no images)"):
        load_descriptor(tmp_path / "net.pt")


@pytest.fixture
def run(command):
    return functools.partial(command, "evaluate")


def test_an_evaluation_has_alignment_and_fidelity_and_says_by_what(run, tiny_clip, tmp_path, monkeypatch):
    monkeypatch.setattr("dori.metrics.inception.WIDTH", 3)  # FID of 2048 features takes half a minute
    inception_file = tmp_path / "inception-2015-12-05.pt"
    torch.jit.script(Net(3)).save(str(inception_file))
    tiny_clip.model.save_pretrained(tmp_path / "clip")
    tiny_clip.tokenizer.save_pretrained(tmp_path / "clip")
    code, out, err = run(clip=tmp_path / "clip", fid=inception_file)
    assert code == 0, err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    table = pd.read_csv(tmp_path / "run" / "results.csv")
    assert summary["clip"] == str(tmp_path / "clip")
    for kind, part in table.groupby("kind"):
        found = summary["by_kind"][kind]["alignment"]
        assert found["value"] == pytest.approx(part["alignment"].mean())
        assert found["n"] == part["id"].nunique()
    fidelity = summary["fidelity"]
    assert (fidelity["features"], fidelity["n_real"], fidelity["n_generated"]) == (
        "inception-2015-12-05",
        3,
        6,
    )
    assert fidelity["fid"] > 0
    assert "inception-2015-12-05" in out
    assert "alignment by" in " ".join(out.split())


def test_fidelity_by_clip_is_named_so(run, tmp_path):
    assert run(fid="clip")[0] == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["fidelity"]["features"] == "clip (bundled)"


def test_fidelity_without_regular_prompts_is_one_line(run):
    assert "FID compares images of kind none" in one_line(run(fid="clip", id=["i0", "i1"]))


def test_a_clip_that_is_not_here_is_one_line(run, tmp_path):
    assert "CLIP" in one_line(run(clip=tmp_path / "none"))
