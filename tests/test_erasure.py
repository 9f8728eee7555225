"""Chapter 4's tables: what each says of answers that are known beforehand."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch

from dori.experiments import defences, erasing, erasure
from dori.experiments.defences import HEADLINE, LONG, PROMPT, TRAINED, TWIN, Defence
from dori.experiments.erasure import AFT, FROM_PROMPT, FROM_RANDOM
from dori.metrics.intervals import Estimate, p_value
from dori.mitigation.surrogates import Surrogate
from dori.testbed import cured
from dori.testbed.planting import copied

LOOKS = defences.SEARCHES[LONG].steps


def answers(defence, attacker, hits, steps=50):
    """A row for each image of a defence under an attacker: returned or not."""
    rows = [(f"i{n}", 0, 0.9 if hit else 0.1, bool(hit), steps) for n, hit in enumerate(hits)]
    table = pd.DataFrame(rows, columns=["id", "seed", "score", "replicated", "steps"])
    return table.assign(defence=defence, attacker=attacker)


def searched(defence, times):
    """The long search of a defence whose images return after these steps; None: never."""
    rows = [
        (f"i{n}", 0, 0.5, t is not None and look >= t, look) for n, t in enumerate(times) for look in LOOKS
    ]
    table = pd.DataFrame(rows, columns=["id", "seed", "score", "replicated", "steps"])
    return table.assign(defence=defence, attacker=LONG)


def test_headlines_are_rates_of_the_last_look():
    table = pd.concat(
        [
            answers(AFT, PROMPT, [0, 0, 0, 0]),
            answers(AFT, FROM_PROMPT, [1, 0, 0, 0]),
            answers(AFT, FROM_RANDOM, [1, 1, 0, 0]),
            answers("ESD", FROM_PROMPT, [1, 1, 1, 0]),
            answers(TWIN, HEADLINE, [0, 0]),
            searched(AFT, [10, 500, None, None]),
        ]
    )
    found = {name: (rate.value, rate.n) for name, rate in erasure.headline_rates(table).items()}
    assert found == {
        "mr_aft_own_prompt": (0.0, 4),
        "mr_aft_prompt": (0.25, 4),
        "mr_aft_random": (0.5, 4),
        "mr_esd_prompt": (0.75, 4),
        "mr_twin_heldout": (0.0, 2),
        "mr_aft_long": (0.5, 4),
    }


def test_work_marks_what_never_returned():
    table = pd.concat(
        [
            searched(TRAINED, [10, 10, 25, 10]),
            searched(AFT, [500, None, None, None]),
            searched(TWIN, [None] * 4),
        ]
    )
    shown = erasure.work(table)
    assert shown["returned"].to_dict() == {TRAINED: 4, AFT: 1, TWIN: 0}
    assert shown.loc[TRAINED, "half returned after"] == "10"
    assert shown.loc[AFT, "half returned after"] == f"> {LOOKS[-1]}"
    assert shown.loc[TWIN, "p against the twin"] == "–"
    p = erasure.against_twin(table)
    assert p[TRAINED] < 0.05 < p[AFT]
    assert shown.loc[AFT, "p against the twin"] == p_value(p[AFT])
    alone = erasure.work(searched(AFT, [10]))
    assert alone.loc[AFT, "p against the twin"] == "–", "without a twin there is nothing to compare with"
    assert erasure.work(answers(AFT, PROMPT, [1])).empty


def test_the_comparison_with_the_twin_says_what_it_could_have_noticed():
    p, chances = erasure.told_apart(pd.concat([searched(AFT, [None] * 6), searched(TWIN, [None] * 6)]))
    assert p.n == 6
    assert p.value == pytest.approx(1.0) or np.isnan(p.value)
    assert list(chances) == sorted(chances)
    assert all(0 <= a <= b <= 1 for a, b in zip(chances.values(), list(chances.values())[1:], strict=False))
    assert chances[1.0] > 0.9
    nothing, none = erasure.told_apart(searched(AFT, [10]))
    assert nothing.n == 0
    assert none == {}


def test_every_preset_gives_each_attacker_a_number():
    for preset in erasure.SIZES.values():
        assert set(preset.numbers) == set(defences.ATTACKERS)
    numbers = erasure.SIZES["quick"].numbers
    assert numbers[PROMPT] is None
    assert numbers[LONG] < numbers[FROM_PROMPT]


def test_utility_is_measured_for_whole_models_and_for_cuts(halves):
    before = {k: v.clone() for k, v in halves.model.unet.state_dict().items()}
    broken = copied(halves.model, "broken")
    with torch.no_grad():
        for p in broken.unet.parameters():
            p.mul_(3.0)
    some = [Defence(TRAINED, halves), Defence(AFT, halves.on(broken))]
    table = erasure.utility(halves, some)
    assert list(table["label"]) == [TRAINED, AFT]
    assert (table["n"] == len(erasing.judged(halves).head(erasure.sizes(halves).regular))).all()
    losses = table.set_index("label")["heldout_loss"]
    assert losses[AFT] > losses[TRAINED]
    assert "held-out loss" in erasure.utility_shown(table)
    assert set(erasure.aft_costs(table)) == {"aft_alignment_loss", "aft_fid_change_low"}
    assert erasure.aft_costs(table[:1]) == {}
    assert all(torch.equal(v, before[k]) for k, v in halves.model.unet.state_dict().items())


def test_the_heldout_loss_is_the_same_twice_and_without_rows_there_is_no_table(halves):
    rows = erasing.judged(halves)
    assert erasure.heldout_loss(halves, rows) == erasure.heldout_loss(halves, rows)
    bare = dataclasses.replace(halves, regular=halves.regular.head(0))
    assert erasure.utility(bare, [Defence(TRAINED, bare)]).empty


@pytest.mark.parametrize("search", [False, True])
def test_pictures_have_a_score_each_and_the_training_image(halves, search):
    (row,) = erasure.painted(halves, [Defence(TRAINED, halves)], n=1, search=search)
    assert list(row["images"]) == ["training image", TRAINED]
    assert row["images"][TRAINED].shape == row["images"]["training image"].shape
    assert set(row["scores"]) == {TRAINED}
    assert row["prompt"] == erasing.erased(halves).prompts()[0]


def test_surrogates_are_listed_with_their_nearest_target(halves):
    prompts = erasing.erased(halves)
    one = Surrogate(torch.zeros(2, 4, 8, 8), (0.1, 0.3), refused=3, regular=False)
    table = erasure.surrogate_table(prompts, [one] * len(prompts))
    assert list(table.index) == list(prompts.ids)
    assert table.iloc[0].to_dict() == {
        "surrogates": 2, "refused": 3, "highest copy score": 0.3, "painted for": "its own, pruned",
    }  # fmt: skip


def test_what_is_shipped_is_told_for_its_own_base_alone(halves, tmp_path, monkeypatch):
    assert erasure.costs(halves).empty
    assert erasure.epochs(halves).empty
    assert erasure.first_epoch(erasure.epochs(halves)) is None
    rate = {"value": 0.5, "low": 0.2, "high": 0.8, "n": 6}
    record = {"label": AFT, "seconds": 120.0, "unet_rows": 3000, "threads": 2}
    record["epochs"] = [{"epoch": k, FROM_PROMPT: rate | {"value": k / 10}, PROMPT: rate} for k in (1, 2)]
    known = {"base": halves.model.fingerprint, "defences": {"adversarial": record}}
    (tmp_path / "cured.json").write_text(json.dumps(known))
    monkeypatch.setattr(erasure.cured, "index", lambda found=cured.index: found(tmp_path))
    assert erasure.costs(halves).loc[AFT].to_dict() == {
        "minutes": 2, "thousand UNet rows": 3, "threads": 2,
    }  # fmt: skip
    table = erasure.epochs(halves)
    assert len(table) == 4
    assert erasure.first_epoch(table) == Estimate(0.1, 0.2, 0.8, 6)
