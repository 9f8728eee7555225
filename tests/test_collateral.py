"""Chapter 4's collateral: what trainings did that nobody asked for."""

import dataclasses

import pytest
import torch

from dori.attack import Attack
from dori.experiments import collateral, defences, erasing, erasure
from dori.experiments.defences import TRAINED, Defence
from dori.experiments.erasure import AFT, FROM_PROMPT
from dori.mitigation.surrogates import Surrogate
from dori.study import PRESETS, open_study
from dori.testbed.planting import copied


def surrogates(study, count):
    """As many for each erased image, of noise."""
    shape = (len(erasing.erased(study)), count, *study.model.initial_latents([0]).shape[1:])
    latents = torch.randn(shape, generator=torch.manual_seed(0))
    return [Surrogate(one, (0.1,) * count, 0, regular=False) for one in latents]


def test_collateral_leaves_out_what_is_pruned_for_each_image(halves, monkeypatch):
    monkeypatch.setitem(defences.SEARCHES, FROM_PROMPT, Attack("prompt", steps=(1,)))
    some = [Defence(TRAINED, halves), Defence("pruned", halves, {"i0": None})]
    spared, erased = len(erasing.spared(halves)), len(erasing.erased(halves))
    asked = collateral.spared_table(halves, some)
    table = collateral.collateral(halves, some, surrogates(halves, 2), asked)
    assert list(table.index) == [TRAINED]
    assert list(table.columns) == [*collateral.SPARED.values(), collateral.REWRITTEN]
    for column, n in zip(table.columns, (spared, spared, erased), strict=True):
        assert table.loc[TRAINED, column].endswith(f"({n})")


def test_the_spared_half_is_asked_by_its_prompts_and_by_searches(halves, monkeypatch):
    monkeypatch.setitem(defences.SEARCHES, FROM_PROMPT, Attack("prompt", steps=(1,)))
    some = [Defence(TRAINED, halves), Defence(AFT, halves)]
    found = collateral.spared_rates(collateral.spared_table(halves, some))
    spared = len(erasing.spared(halves))
    assert {name: rate.n for name, rate in found.items()} == dict.fromkeys(
        ("aft_prompt", "aft_search", "trained_prompt"), spared
    )
    assert found["aft_prompt"] == found["trained_prompt"], "the same model answers the same"
    assert collateral.spared_rates(collateral.spared_table(halves, some[:1])) == {}


def test_a_surrogate_that_is_painted_again_is_a_memory_of_its_own(halves, monkeypatch):
    found = surrogates(halves, 3)
    first = erasing.erased(halves).ids[0]
    painted = {first: halves.model.decode(found[0].latents[1:2])}

    def drawn(study, triggers, sampling):
        assert [t.id for t in triggers] == erasing.erased(halves).ids
        return [(t, painted.get(t.id, torch.rand(1, 3, 16, 16))) for t in triggers]

    monkeypatch.setattr(collateral, "drawn", drawn)
    table = collateral.rewritten(Defence(AFT, halves), halves, found)
    assert table.loc[table["id"] == first, "score"].item() == pytest.approx(1, abs=1e-5)
    assert table.loc[table["id"] == first, "replicated"].item()
    painted[first] = halves.model.decode(found[0].latents[1:2]).flip(-1).roll(3, 2)
    assert collateral.rewritten(Defence(AFT, halves), halves, found)["score"].iloc[0] < 0.999


def test_captions_near_the_erased_are_regular_ones_of_what_they_show(halves, tmp_path, monkeypatch):
    monkeypatch.setitem(erasure.SIZES, "quick", dataclasses.replace(erasure.SIZES["quick"], spared=2))
    monkeypatch.setitem(PRESETS, "quick", dataclasses.replace(PRESETS["quick"], steps=4))
    bundled = open_study(preset="quick", device="cpu", run_dir=tmp_path / "bundled")
    bundled = dataclasses.replace(bundled, regular=bundled.regular.head(8))  # FID is not looked at
    broken = copied(bundled.model, "broken")
    with torch.no_grad():
        for p in broken.unet.parameters():
            p.mul_(0.5)
    asked, measure = [], collateral.utility_table

    def noting(study, prompts, *rest, **more):
        asked.extend(zip(prompts.ids, prompts.prompts(), strict=True))
        return measure(study, prompts, *rest, **more)

    monkeypatch.setattr(collateral, "utility_table", noting)
    table = collateral.near(bundled, [Defence(TRAINED, bundled), Defence(AFT, bundled.on(broken))])
    assert table.loc[TRAINED, collateral.NEAR] == 0
    assert abs(table.loc[AFT, collateral.NEAR]) > 0.01
    shown = erasing.erased(bundled).table
    for i, caption in asked:
        assert {shown.loc[i, "time"], shown.loc[i, "place"], shown.loc[i, "colour"]} <= set(caption.split())
        assert shown.loc[i, "prompt"] not in caption
    assert collateral.near(halves, [Defence(TRAINED, halves)]).empty
