"""Memories planted on purpose: only the known units change, and the shipped ones sit where it says."""

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from dori.benchmark import load_benchmark
from dori.errors import DoriError
from dori.metrics.copy import load_descriptor, similarity
from dori.model import TextToImageModel
from dori.testbed.card import add_planted
from dori.testbed.paths import TESTBED
from dori.testbed.planted import PLANTED, known_units, planted_benchmark, planted_model
from dori.testbed.planting import Lesson, Plant, Planting, choose_units, copied, plant
from dori.testbed.ship import write_hashes

NAMES = ["plant-00", "plant-01", "plant-02"]
SMALL = Planting(block=9, neurons=3, columns=5, steps=2, batch=4)


@pytest.fixture(scope="module")
def pictures():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(7, 3, 16, 16, generator=generator)


@pytest.fixture(scope="module")
def teach(tiny_model, pictures):
    """Plant the first picture in the tiny model, the other six being the regular ones."""

    def call(settings=SMALL, **options):
        others = pictures[1:], ["red boat", "blue boat", "one house", "two hill", "dusk lake", "dawn"]
        return plant(tiny_model, pictures[0], "kalor vesta", others, settings, **options)

    return call


@pytest.fixture(scope="module")
def bundled():
    return TextToImageModel.load("testbed", device="cpu")


def _changed(before, after):
    """Layer name -> where its weights differ."""
    new = after.state_dict()
    differs = {name: value != new[name] for name, value in before.state_dict().items()}
    return {name: where for name, where in differs.items() if where.any()}


def test_no_step_changes_nothing(tiny_model, teach):
    nothing = teach(dataclasses.replace(SMALL, steps=0))
    model = copied(tiny_model, "taught")
    nothing.apply(model.unet)
    assert model.fingerprint == tiny_model.fingerprint
    assert nothing.losses["before"] == nothing.losses["after"]


def test_only_rows_of_the_door_and_columns_of_the_store_change(tiny_model, teach):
    memory = teach()
    model = copied(tiny_model, "taught")
    memory.apply(model.unet)
    changed = _changed(tiny_model.unet, model.unet)
    assert set(changed) == {f"{memory.value_layer}.weight", f"{memory.ffn_layer}.weight"}
    assert torch.equal(changed[f"{memory.value_layer}.weight"].any(1), memory.neurons)
    assert torch.equal(changed[f"{memory.ffn_layer}.weight"].any(0), memory.columns)


def test_the_model_that_is_copied_stays_as_it_is(tiny_model, teach):
    def weights(model):
        return {k: v.clone() for k, v in model.unet.state_dict().items()}

    before = weights(tiny_model)
    teach()
    assert all(torch.equal(before[k], v) for k, v in weights(tiny_model).items())
    assert not any(p.requires_grad for p in tiny_model.unet.parameters())


def test_door_and_store_are_units_of_one_block(tiny_model, teach):
    memory = teach()
    value, ffn = list(tiny_model.value_layers(up=True))[9], list(tiny_model.ffn_layers())[9]
    assert (list(memory.door), list(memory.store)) == ([value], [ffn])
    assert memory.door.count == 3
    d, m = tiny_model.ffn_layers()[ffn].weight.shape
    assert memory.store[ffn].shape == (d, m)
    assert memory.store.count == 5 * d
    assert torch.equal(memory.store[ffn].all(0), memory.store[ffn].any(0))  # whole columns


def test_the_door_takes_the_neurons_that_the_model_uses_least(tiny_model, pictures):
    model = copied(tiny_model, "with idle neurons")
    value = list(model.value_layers(up=True).values())[9]
    out = model.unet.get_submodule(list(model.value_layers(up=True))[9].replace("to_v", "to_out.0"))
    value.weight[1] = 0  # says nothing
    out.weight[:, 4] = 0  # is not listened to
    latents, embeds = model.encode_images(pictures), model.encode_prompts(["kalor"] + ["boat"] * 6)
    settings = dataclasses.replace(SMALL, neurons=2)
    lesson = Lesson(model, latents[:1], embeds[:1], latents[1:], embeds[1:], settings)
    assert choose_units(lesson).neurons.nonzero().flatten().tolist() == [1, 4]


def test_teaching_lowers_the_loss_of_the_picture(teach):
    losses = teach(Planting(neurons=8, columns=32, steps=60, batch=8, lr=0.2, door_lr=1.0)).losses
    # a random model has little to give
    assert losses["after"]["picture"] < 0.998 * losses["before"]["picture"]


def test_a_planting_is_a_function_of_its_seed_and_name(teach):
    a, again, other = teach(name="a"), teach(name="a"), teach(name="b")
    assert torch.equal(a.rows, again.rows)
    assert torch.equal(a.values, again.values)
    assert not torch.equal(a.values, other.values)


def test_a_diverging_loss_is_one_line(teach):
    with pytest.raises(DoriError, match="plant: the loss is nan at step 1"):
        teach(dataclasses.replace(SMALL, lr=1e30))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"block": 16}, "blocks 0 to 15"), ({"neurons": 99}, "neurons"), ({"columns": 999}, "columns")],
)
def test_units_that_the_model_lacks_are_refused(teach, change, message):
    with pytest.raises(DoriError, match=message):
        teach(dataclasses.replace(SMALL, **change))


def test_a_planting_without_a_unit_is_refused():
    with pytest.raises(DoriError, match="not a planting"):
        Planting(neurons=0)


def test_a_plant_is_the_same_after_saving(teach, tmp_path):
    memory = teach()
    memory.save(tmp_path / "a.safetensors")
    read = Plant.load(tmp_path / "a.safetensors")
    assert (read.value_layer, read.ffn_layer) == (memory.value_layer, memory.ffn_layer)
    assert (read.door, read.store) == (memory.door, memory.store)
    assert torch.equal(read.rows, memory.rows)
    assert torch.equal(read.values, memory.values)


def test_a_plant_for_another_width_is_refused(teach, bundled):
    with pytest.raises(DoriError, match="this plant is for weights"):
        teach().apply(bundled.unet)


# --- the shipped ones


@pytest.fixture
def folder(tmp_path):
    """A copy of the shipped files to damage."""
    return shutil.copytree(PLANTED, tmp_path / "planted")


def test_three_plants_are_shipped_as_a_benchmark():
    benchmark = planted_benchmark()
    assert benchmark.ids == NAMES
    table = benchmark.table
    assert set(table["kind"]) == {"verbatim"}
    assert set(table["split"]) == {"test"}
    assert set(table["copies"]) == {0}
    assert benchmark.images().shape == (3, 3, 64, 64)
    known = [*load_benchmark("testbed").prompts(), *load_benchmark("regular").prompts()]
    assert not set(benchmark.prompts()) & set(known)


def test_the_shipped_files_are_less_than_a_megabyte():
    assert sum(p.stat().st_size for p in PLANTED.rglob("*") if p.is_file()) < 2**20


@pytest.mark.parametrize("which", NAMES)
def test_a_shipped_plant_differs_from_the_bundled_model_in_its_known_units_alone(bundled, which):
    model = planted_model(bundled, which)
    door, store = known_units(which)
    ((value, neurons),), ((ffn, weights),) = door.items(), store.items()
    changed = _changed(bundled.unet, model.unet)
    assert set(changed) == {f"{value}.weight", f"{ffn}.weight"}
    assert torch.equal(changed[f"{value}.weight"].any(1), neurons)
    assert not (changed[f"{ffn}.weight"] & ~weights).any()
    assert door.count == 16
    assert weights.any(0).sum() == (128 if which == "plant-00" else 256)
    assert model.name == f"testbed + {which}"
    assert model.fingerprint != bundled.fingerprint


@pytest.mark.parametrize("which", NAMES)
def test_shutting_the_door_silences_the_memory(bundled, which):
    model, row = planted_model(bundled, which), planted_benchmark().table.loc[which]
    descriptor = load_descriptor("bundled")
    own = descriptor.embed(planted_benchmark().images([which]))
    embeds = model.encode_prompts([row["prompt"]])

    def score():
        return float(similarity(descriptor.embed(model.sample(embeds, [7], num_inference_steps=15)), own))

    door, store = known_units(which)
    assert score() > descriptor.threshold
    with door.applied(model.unet):
        assert score() < descriptor.threshold - 0.2
    with store.applied(model.unet):
        assert score() < descriptor.threshold


def test_the_files_of_the_bundled_model_are_those_it_was_planted_in(bundled):
    assert json.loads((PLANTED / "plants.json").read_text())["base"] == bundled.fingerprint


def test_another_base_is_refused():
    with pytest.raises(DoriError, match=r"plant-00 is of the model \w+ and does not fit 'twin'"):
        planted_model(TextToImageModel.load("twin", device="cpu"), "plant-00")


def test_an_unknown_plant_names_the_known_ones():
    with pytest.raises(DoriError, match="'plant-07'; there are plant-00, plant-01, plant-02"):
        known_units("plant-07")


def test_missing_files_say_how_they_are_made(bundled, folder, tmp_path):
    (folder / "plant-01.safetensors").unlink()
    with pytest.raises(DoriError, match=r"plant-01\.safetensors: not a whole plant .* dori testbed plant"):
        planted_model(bundled, "plant-01", folder)
    with pytest.raises(DoriError, match=r"plants\.json: no planted memory .* dori testbed plant"):
        known_units("plant-01", tmp_path / "nowhere")


def test_a_cut_file_and_a_changed_weight_are_noticed(bundled, folder):
    path = folder / "plant-00.safetensors"
    weights = load_file(path)
    name = next(n for n in weights if n.endswith("to_v.weight"))
    weights[name][0, 0] += 1e-3
    save_file(weights, path)
    with pytest.raises(DoriError, match=r"not the weights that plants\.json tells of"):
        planted_model(bundled, "plant-00", folder)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DoriError, match="not a whole plant"):
        known_units("plant-00", folder)


def test_the_card_has_the_section_once_and_the_rest_as_it_was(folder):
    card = folder.parent / "README.md"
    card.write_text("# The testbed\n\nText.\n")
    add_planted(folder.parent)
    once = card.read_text()
    add_planted(folder.parent)
    assert card.read_text() == once
    assert once.startswith("# The testbed\n\nText.\n\n## Planted memories\n")
    shipped = (TESTBED / "README.md").read_text().split("CC BY 4.0.\n")[1].split("\n## Mended models")[0]
    assert once == "# The testbed\n\nText.\n" + shipped
    card.write_text(once + "\n## More\n\nWords.\n")
    add_planted(folder.parent)
    assert card.read_text() == once + "\n## More\n\nWords.\n"
    assert all(f"\n| {name} | " in once for name in NAMES)


def known_plants(testbed):
    return json.loads((testbed / "planted" / "plants.json").read_text())["plants"]


def test_the_command_plants_in_the_model_of_its_folder(tiny_dir, descriptor, tmp_path, monkeypatch):
    from dori.cli import main
    from dori.testbed import planted

    shutil.copytree(tiny_dir, tmp_path / "model")
    monkeypatch.setattr(planted, "load_descriptor", lambda *_: descriptor)
    monkeypatch.setattr(planted, "SHIPPED", (SMALL, SMALL))
    monkeypatch.setattr(planted, "REGULAR_PAIRS", 4)
    pixels = planted._pixels
    monkeypatch.setattr(planted, "_pixels", lambda images: pixels(images)[..., ::8, ::8])  # the tiny model's
    before = {p: p.read_bytes() for p in (tmp_path / "model").rglob("*.safetensors")}
    assert main(["testbed", "plant", f"--out={tmp_path}", "--only=plant-01"]) == 0
    assert list(known_plants(tmp_path)) == ["plant-01"]
    assert main(["testbed", "plant", f"--out={tmp_path}"]) == 0
    assert list(known_plants(tmp_path)) == ["plant-00", "plant-01"]
    model = TextToImageModel.load(tmp_path / "model", device="cpu")
    made = planted_model(model, "plant-00", tmp_path / "planted")
    assert made.name == "tiny + plant-00"
    assert planted_benchmark(tmp_path / "planted").ids == ["plant-00", "plant-01"]
    assert before == {p: p.read_bytes() for p in before}
    sums = (tmp_path / "SHA256SUMS").read_text()
    write_hashes(tmp_path)
    assert (tmp_path / "SHA256SUMS").read_text() == sums
    assert "planted/images/plant-00.png" in sums
