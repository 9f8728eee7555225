"""What a reader is left with follows what came out, on both sides of each rule."""

import numpy as np
import pandas as pd
import pytest

from dori.experiments import takeaways
from dori.experiments.foundations import Silencing
from dori.experiments.pruned import Choice
from dori.metrics.intervals import Estimate, rate_difference, wilson
from dori.mitigation.wanda import Wanda

NOTHING = Estimate(np.nan, np.nan, np.nan, 0)
CHOSEN = {"Wanda": Choice(Silencing(pd.DataFrame(), pd.DataFrame(), "Wanda 15 %"), Wanda(0.15))}


def rates(**k):
    """Shares of sixteen."""
    return {name: wilson(count, 16) for name, count in k.items()}


def pruned(loss=NOTHING, gap_200=NOTHING, gap_4=NOTHING, **k):
    figures = rates(**k)
    text = takeaways.pruning(figures, CHOSEN, losses={"Wanda": loss}, gap_200=gap_200, gap_4=gap_4)
    assert text.startswith("**What to take away**\n\n- **Wanda 15 %** ")
    return text


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({"mr_wanda": 0, "mr_wanda_attack_prompt": 15}, "hides the images and does not remove them"),
        ({"mr_wanda": 0, "mr_wanda_attack_prompt": 4}, "what comes back was still there"),
        ({"mr_wanda": 0, "mr_wanda_attack_prompt": 0}, "finds nothing"),
        (
            {"mr_wanda": 9, "mr_wanda_attack_prompt": 16},
            "leaves more prompts working than the rule allows (56.2 %",
        ),
        ({"mr_wanda": 0}, "no search was made"),
    ],
)
def test_a_pruning_hid_or_removed_or_did_not_silence(counts, words):
    assert words in pruned(**counts)


def test_a_search_is_evidence_as_far_as_its_controls_stay_down():
    found = {"mr_wanda": 0, "mr_wanda_attack_prompt": 15}
    assert "what it finds was there" in pruned(**found, mr_attack_heldout=0, mr_attack_twin=0)
    assert "no evidence of memory" in pruned(**found, mr_attack_heldout=0, mr_attack_twin=8)
    assert "no control" in pruned(**found)


def test_the_price_and_the_gaps_are_told_by_their_rules():
    found = {"mr_wanda": 0, "mr_wanda_attack_prompt": 15}
    dear, cheap = Estimate(0.3, 0.2, 0.4, 32), Estimate(0.01, 0.0, 0.02, 32)
    assert "30.0 % [20.0, 40.0], n = 32, more than the rule allows" in pruned(loss=dear, **found)
    assert "1.0 % [0.0, 2.0], n = 32." in pruned(loss=cheap, **found)
    wide, none = rate_difference(wilson(16, 16), wilson(0, 16)), rate_difference(wilson(8, 16), wilson(8, 16))
    assert "still tells memory from writing" in pruned(gap_200=wide, **found)
    assert "the rule says no: with four free tokens" in pruned(gap_4=none, **found)
    assert "200 steps" not in pruned(**found), "without a twin there is no difference to speak of"


def test_a_search_over_words_is_compared_with_one_over_embeddings():
    found = {"mr_wanda": 0, "mr_wanda_attack_prompt": 15}
    assert "a failure to look" in pruned(mr_wanda_unlearndiff=0, **found)
    assert "does as well" in pruned(mr_wanda_unlearndiff=16, **found)


def trained(counts, p=NOTHING, powers=None, costs=None, spared=None):
    return takeaways.erasing_trained(
        rates(**counts), p=p, powers=powers or {}, costs=costs or {}, spared=spared or {}
    )


def test_without_a_trained_remedy_nothing_is_claimed_of_one():
    text = trained({"mr_trained_heldout": 16})
    assert len(text.splitlines()) == 3
    assert "No trained remedy" in text


@pytest.mark.parametrize(
    ("long", "p", "words"),
    [
        (
            0,
            0.8,
            ["do not bring the images back either", "is not told from its twin", "0.60 for 50 % of them"],
        ),
        (
            14,
            0.0004,
            ["more than the rule allows (87.5 %", "can be told from its twin", "p < 0.001, 6 images"],
        ),
    ],
)
def test_the_long_search_and_the_twin_decide_whether_images_are_gone(long, p, words):
    figures = {"mr_aft_own_prompt": 0, "mr_aft_heldout": 0, "mr_twin_heldout": 0, "mr_aft_long": long}
    text = trained(figures, p=Estimate(p, np.nan, np.nan, 6), powers={0.5: 0.6})
    assert all(word in text for word in [*words, "the twin, which never saw them 0.0 %"])
    assert "nan" not in text


def test_an_adjusted_prompt_is_held_back_or_not():
    def told(after, embedding):
        return takeaways.prompt_adjusted(wilson(16, 16), wilson(after, 16), embedding)

    assert told(2, wilson(16, 16)).endswith("which nothing adjusts, return 100.0 % [80.6, 100.0], n = 16.")
    assert told(2, wilson(0, 0)).startswith("The adjustment holds the prompts back")
    assert "does not clearly hold" in told(15, wilson(0, 0))
    assert "handed in" not in told(15, wilson(0, 0))


def test_the_trainings_are_ranked_and_ties_are_shared():
    counts = {"mr_aft_own_prompt": 0, "mr_aft_prompt": 2, "mr_esd_prompt": 16, "mr_ca_prompt": 2}
    assert "It is least for adversarial fine-tuning and concept ablation." in trained(counts)
    assert "It is least for ESD." in trained(counts | {"mr_esd_prompt": 0})
    assert "It is least" not in trained({"mr_aft_own_prompt": 0, "mr_aft_prompt": 2})


def test_price_and_collateral_are_told_by_rule_and_by_interval():
    own = {"mr_aft_own_prompt": 0}
    assert "stays as usable" in trained(own, costs={"aft_alignment_loss": Estimate(0.04, 0.02, 0.06, 32)})
    sure = trained(own, costs={"aft_alignment_loss": Estimate(0.4, 0.3, 0.5, 32)})
    assert "is spoilt" in sure
    assert "to both sides of the rule" not in sure
    near = trained(own, costs={"aft_alignment_loss": Estimate(0.053, 0.034, 0.072, 128)})
    assert "is spoilt, by the rule" in near
    assert "to both sides of the rule" in near
    silent = rates(aft_prompt=0, trained_prompt=16, aft_search=4)
    text = trained(own, spared=silent)
    assert "silences more than it was told to" in text
    assert "a search from them, after the training, 25.0 %" in text
    assert "not clearly touched" in trained(own, spared=rates(aft_prompt=15, trained_prompt=16))
