"""Every method has a version of its code: raised, it makes that method's results new and no others."""

import pytest

from dori import methods
from dori.archive import SHIPPED, Archive
from dori.attack import Attack
from dori.experiments import curing, erasing, searches
from dori.experiments.fragility import TOKEN_BUDGETS, attack_table
from dori.experiments.mitigate import METHODS
from dori.experiments.replication import detection_table, memorized_prompts
from dori.experiments.selections import code_name, find_units
from dori.experiments.unprompted import unprompted_table
from dori.methods import CALLS, VERSIONS, code_of
from dori.mitigation.nemo import Nemo
from dori.mitigation.wanda import Wanda
from dori.model import TextToImageModel
from dori.study import Sampling, generate_and_score, open_study
from dori.unlearndiff import UnlearnDiff

ONE = Sampling(seeds=1, guidance_scale=3.0, steps=1)
FIRST = {  # keys as they were before methods had versions of their own
    "attack/b9d4187b7b3ff100e88712d3",
    "image/356bbeef189306404c0e5999",
    "nemo-threshold/a404aa1924f837cf6c8437d8",
    "score/9ae1defefa998449bda678cc",
    "units/04f57eecb5a91253b2e1ba86",
    "units/dcc666631a6de3ae6ce51349",
    "unlearndiff/25d31080c24ece5728e43fb3",
}


@pytest.fixture
def fixed(study, monkeypatch):
    """The study on a model whose identity is the same on every machine."""
    monkeypatch.setattr(TextToImageModel, "identity", {"model": "m", "dtype": "torch.float32"})
    return study


def measure(study) -> set[str]:
    """What lies in the run directory when one row was drawn, attacked twice and pruned for."""
    one = study.memorized.head(1)
    generate_and_score(study, one, ONE)
    attack_table(study, one, Attack("random", 1), sampling=ONE)
    searches.run_unlearndiff(study, one, UnlearnDiff(tokens=1, timesteps=1, iterations=1), {})
    find_units(study, one, Nemo(z=None, seeds=2))
    find_units(study, one, Wanda(0.2, steps=1))
    return {f"{p.parent.name}/{p.stem}" for p in study.store.directory.glob("records/*/*.json")}


def sorts(names: set[str]) -> list[str]:
    return sorted(name.split("/")[0] for name in names)


def test_keys_are_those_of_the_first_records(fixed):
    """But for images of an embedding that was found: its digits are the machine's."""
    assert measure(fixed) >= FIRST
    assert code_of("detection", "dori", "nemo", "scoring", "unlearndiff", "wanda") == {}


@pytest.mark.parametrize(
    ("method", "new"),
    [
        ("sampling", ["image", "image", "score", "score", "units"]),  # Wanda goes along a trajectory
        ("scoring", ["score", "score"]),
        ("dori", ["attack"]),  # ends at the same point: its images are known
        ("unlearndiff", ["unlearndiff"]),
        ("nemo", ["nemo-threshold", "units"]),
        ("wanda", ["units"]),
        ("siss", []),
    ],
)
def test_a_raised_version_makes_only_what_the_method_makes_new(fixed, monkeypatch, method, new):
    before = measure(fixed)
    monkeypatch.setitem(methods.VERSIONS, method, 2)
    assert sorts(measure(fixed) - before) == new
    monkeypatch.setitem(methods.VERSIONS, method, 3)
    assert len(measure(fixed)) == len(before) + 2 * len(new)


def test_what_is_measured_on_top_of_another_result_is_new(fixed, monkeypatch):
    before, attack = measure(fixed), searches.dori_attack

    def changed(*given, **more):
        found = attack(*given, **more)
        for y in found.saved.values():
            y += 1
        return found

    monkeypatch.setattr(searches, "dori_attack", changed)
    assert measure(fixed) == before, "nobody said that the code has changed"
    monkeypatch.setitem(methods.VERSIONS, "dori", 2)
    assert sorts(measure(fixed) - before) == ["attack", "image", "score"]


def test_a_training_is_new_with_whatever_it_calls(monkeypatch):
    monkeypatch.setitem(methods.VERSIONS, "sampling", 4)
    assert code_of("adversarial-lora") == {"code": {"sampling": 4}}
    monkeypatch.setitem(methods.VERSIONS, "dori", 2)
    assert code_of("adversarial-lora") == {"code": {"dori": 2, "sampling": 4}}
    assert code_of("siss") == code_of("esd") == {"code": {"sampling": 4}}
    assert code_of("nemo") == {}


def test_every_method_has_a_version():
    called = {name for names in CALLS.values() for name in names}
    commands = {*curing.PUBLISHED, *map(code_name, METHODS.values()), "dori", "unlearndiff"}
    assert called | set(CALLS) | commands <= set(VERSIONS)


def test_shipped_records_are_found_without_the_network(tmp_path, monkeypatch):
    """Of the sorts that come with the book."""
    study = open_study(run_dir=tmp_path, preset="quick")
    study.store.archive = Archive(SHIPPED)
    monkeypatch.setattr(type(study.model.unet), "forward", None)
    generate_and_score(study, memorized_prompts(study).head(2))
    detection_table(study)
    unprompted_table(study)
    erased = erasing.erased(study)
    erasing.surrogates_for(study, erased)  # and the units they are drawn under
    searches.run_attacks(study, erased.head(1), Attack(), {})
    searches.run_unlearndiff(study, erased.head(1), TOKEN_BUDGETS["quick"], {})
    found = {name.split("/")[0] for name in study.store.shipped}
    assert found == {"score", "magnitude", "unprompted", "units", "surrogates", "attack", "unlearndiff"}
    assert study.store.computed == 0
