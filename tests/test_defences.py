"""Chapter 4's experiments: what is erased and kept, how a defence is trained and shipped, who asks what."""

import copy
import dataclasses
import json

import pandas as pd
import pytest
import torch
from conftest import WORDS, write_benchmark

from dori.attack import Attack
from dori.benchmark import load_benchmark
from dori.detection import magnitudes
from dori.drawing import noise_seed
from dori.errors import DoriError
from dori.experiments import adjustment, curing, defences, erasing, options, relearning, shipping, trials
from dori.experiments.relearning import Relearning, relearned_table
from dori.metrics.survival import first_success
from dori.mitigation import delta
from dori.mitigation.adversarial import Adversarial
from dori.mitigation.surrogates import Drawing, make_surrogates
from dori.testbed.cured import cured_model, index
from dori.testbed.planting import copied

QUICK = Adversarial(epochs=1, search=Attack(steps=(1,), batch=1), at_once=2, steps=1, retain=2, lr=1e-3)


def weights(model) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.unet.state_dict().items()}


# Rounded changes


def test_a_rounded_change_is_off_by_half_a_step_of_its_row_at_most():
    before = {"w": torch.randn(4, 3, 2), "b": torch.randn(5), "same": torch.ones(3), "n": torch.zeros(4, 3)}
    after = {k: v + (k != "same") * torch.randn_like(v) for k, v in before.items()}
    after["n"] = before["n"].clone()
    after["n"][2] = 1.0  # rows that do not change stay exactly as they are
    found = delta.compress(before, after)
    assert "same.q" not in found
    network = torch.nn.Module()
    for name, value in before.items():
        network.register_buffer(name, value.clone())
    delta.apply(network, found)
    state = network.state_dict()
    for name in ("w", "b", "n"):
        change = (after[name] - before[name]).flatten(1 if before[name].ndim > 1 else 0)
        largest = change.abs().amax(-1, keepdim=change.ndim > 1) if change.ndim > 1 else change.abs()
        off = (state[name] - after[name]).flatten(1 if before[name].ndim > 1 else 0).abs()
        assert (off <= largest / 254 + 1e-6).all()
    assert torch.equal(state["n"][[0, 1, 3]], before["n"][[0, 1, 3]])
    assert torch.equal(state["same"], before["same"])


def test_a_change_of_another_network_is_refused(tiny_model, tmp_path):
    state = weights(tiny_model)
    name = "conv_in.weight"
    change = delta.compress({name: state[name]}, {name: state[name] + 1})
    wrong = {k.replace("conv_in", "conv_gone"): v for k, v in change.items()}
    with pytest.raises(DoriError, match=r"conv_gone\.weight.*another one"):
        delta.apply(copied(tiny_model, "x").unet, wrong)
    with pytest.raises(DoriError, match="no change of weights"):
        delta.load(tmp_path / "gone.safetensors")
    delta.save(tmp_path / "one.safetensors", change)
    assert torch.equal(delta.load(tmp_path / "one.safetensors")[f"{name}.q"], change[f"{name}.q"])


# What is erased, spared and kept


@pytest.fixture
def roomy(study, tmp_path):
    """The study with two images of one level to divide, and ten regular rows."""
    table = study.memorized.table.assign(copies=256)
    rows = [
        {"id": f"r{n}", "prompt": f"{WORDS[n]} {WORDS[-1 - n]}", "image": f"{n}.png", "kind": "none"}
        | {"split": "test", "copies": 0, "group": ""}
        for n in range(10)
    ]
    return dataclasses.replace(
        study,
        memorized=dataclasses.replace(study.memorized, table=table),
        regular=load_benchmark(write_benchmark(tmp_path / "regular", rows)),
        preset=dataclasses.replace(study.preset, regular=3),
    )


def test_halves_are_apart(roomy):
    erased, spared = erasing.erased(roomy), erasing.spared(roomy)
    assert len(erased) == len(spared) == 1
    assert erased.ids != spared.ids
    assert erasing.erased(roomy, "validation").ids == spared.ids


@pytest.mark.parametrize(("asked", "judging"), [(3, 3), (None, 5), (64, 5)])
def test_regular_rows_judge_or_hold_or_stay_unrelated(roomy, asked, judging):
    study = dataclasses.replace(roomy, preset=dataclasses.replace(roomy.preset, regular=asked))
    embeds = study.model.encode_prompts(study.regular.prompts())
    judged = embeds[: len(erasing.judged(study))]
    parts = [judged, erasing.retain_pairs(study).prompt_embeds, erasing.unrelated_pairs(study).prompt_embeds]
    assert len(judged) == judging
    assert all(len(part) for part in parts)
    assert torch.allclose(torch.cat(parts), embeds, atol=1e-5)
    assert erasing.search_prompts(study) == study.regular.prompts()[judging : judging + len(parts[1])]


@pytest.mark.parametrize(("rows", "pairs"), [(0, erasing.retain_pairs), (4, erasing.unrelated_pairs)])
def test_too_few_regular_rows_are_told(roomy, rows, pairs):
    few = dataclasses.replace(roomy, regular=roomy.regular.head(rows))
    with pytest.raises(DoriError, match=f"{rows} regular rows, too few"):
        pairs(few)


def test_targets_are_what_the_model_encodes(study):
    targets = erasing.as_targets(study, study.memorized)
    assert targets.ids == tuple(study.memorized.ids)
    assert torch.equal(targets.prompt_embeds, study.model.encode_prompts(study.memorized.prompts()))
    images = study.memorized.images(size=16)
    assert torch.equal(targets.latents, study.model.encode_images(images))


# Mending the prompt


def test_lower_pulls_are_shares_of_a_regular_prompts(study, monkeypatch):
    sampling, asked = study.sampling(steps=2, seeds=1), []
    seeds = [noise_seed(study.seed, i, 0) for i in study.regular.ids]
    embeds = study.model.encode_prompts(study.regular.prompts())
    pull = magnitudes(study.model, embeds, seeds, num_inference_steps=2)[:, 0].median().item()
    assert adjustment.median_pull(study, adjustment.regular(study), sampling) == pytest.approx(pull, rel=5e-3)
    monkeypatch.setattr(
        adjustment, "adjusted", lambda model, embeds, seeds, settings: asked.append(settings) or embeds
    )
    found = adjustment.targets_compared(study, study.memorized.head(1), sampling)
    assert [one.target for one in asked] == pytest.approx([pull, pull / 2, 0], rel=5e-3)
    assert [one.iterations for one in asked] == found["steps at most"].tolist() == [10, 100, 100]
    assert found["MR of the prompts"].nunique() == 1, "the stub adjusts nothing"


# Training a defence and shipping it


@pytest.fixture
def shipped(roomy, tmp_path, monkeypatch):
    """One defence, trained in a moment and written down."""
    plan = Drawing(count=1, tries=1, ceiling=2.0, steps=1)

    def painted(study, prompts):
        images = prompts.images(size=16)
        targets = erasing.as_targets(study, prompts)
        return make_surrogates(study.model, targets, images, study.descriptor, {}, plan)

    monkeypatch.setattr(erasing, "surrogates_for", painted)
    before = weights(roomy.model)
    record = shipping.ship(
        roomy, "adversarial", tmp_path / "train", folder=tmp_path / "cured", settings=QUICK
    )
    after = weights(roomy.model)
    assert all(torch.equal(before[k], after[k]) for k in before)  # the study's own model is not touched
    return roomy, record, tmp_path / "cured"


def test_a_shipped_defence_is_read_as_it_was_trained(shipped):
    study, record, folder = shipped
    model = cured_model(study.model, "adversarial", folder)
    assert model.fingerprint == record["fingerprint"] != study.model.fingerprint
    assert record["erased"] == erasing.erased(study).ids
    assert record["settings"]["lr"] == QUICK.lr
    assert index(folder).is_base(study.model)
    assert not index(folder).is_base(model)
    assert "adversarial" in model.name


def test_the_card_and_the_hashes_follow_what_is_shipped(shipped, tmp_path):
    study, record, folder = shipped
    card, sums = tmp_path / "README.md", tmp_path / "SHA256SUMS"
    card.write_text("# The testbed\n\n## Planted memories\n\nText.\n")
    sums.write_text("")
    settings = dataclasses.replace(QUICK, lr=2e-3)
    for _ in range(2):
        again = shipping.ship(study, "adversarial", tmp_path / "more", folder=folder, settings=settings)
    text = card.read_text()
    assert text.startswith("# The testbed\n\n## Planted memories\n\nText.\n\n## Mended models\n\n")
    assert text.count("## Mended models") == 1
    (row,) = [line for line in text.splitlines() if line.startswith("| adversarial fine-tuning |")]
    assert f"`{again['fingerprint']}`" in row
    assert "`lr=0.002`" in row
    assert again["fingerprint"] != record["fingerprint"]
    assert "cured/adversarial.safetensors" in sums.read_text()


def test_a_defence_of_another_model_or_of_other_weights_is_refused(shipped):
    study, _, folder = shipped
    other = cured_model(study.model, "adversarial", folder)
    with pytest.raises(DoriError, match="does not fit"):
        cured_model(other, "adversarial", folder)
    with pytest.raises(DoriError, match="no mended model 'nothing'; there are adversarial"):
        cured_model(study.model, "nothing", folder)
    change = delta.load(folder / "adversarial.safetensors")
    name = next(k for k in change if k.endswith(".scale"))
    delta.save(folder / "adversarial.safetensors", change | {name: change[name] * 2})
    with pytest.raises(DoriError, match=r"not the weights that cured\.json tells of"):
        cured_model(study.model, "adversarial", folder)


def test_unknown_defences_and_missing_paraphrases_are_named(roomy, tmp_path):
    with pytest.raises(DoriError, match="unknown defence 'hope'"):
        curing.cure(roomy, "hope", roomy.memorized, tmp_path)
    with pytest.raises(DoriError, match="column 'paraphrases'"):
        curing.paraphrases(roomy, roomy.memorized)
    table = roomy.memorized.table.assign(paraphrases="one red boat | a boat ,red")
    found = curing.paraphrases(roomy, dataclasses.replace(roomy.memorized, table=table))
    assert found == [["one red boat", "a boat ,red"]] * len(table)


# Attackers


def test_every_attacker_answers_in_the_same_columns(roomy, monkeypatch):
    short = {name: dataclasses.replace(plan, steps=(0, 1)) for name, plan in defences.SEARCHES.items()}
    monkeypatch.setattr(defences, "SEARCHES", short)
    monkeypatch.setattr(defences, "Relearning", lambda: Relearning(steps=1, batch=1, plan=Attack(steps=(1,))))
    prompts, sampling = roomy.memorized.head(1), roomy.sampling(seeds=2)
    some = [defences.Defence("as it is", roomy)]
    table = defences.asked(
        some, prompts, dict.fromkeys(defences.ATTACKERS, 1) | {defences.WORDS: 0}, sampling
    )
    assert set(table["attacker"]) == set(defences.ATTACKERS) - {defences.WORDS}
    assert list(table.columns) == ["id", "seed", "score", "replicated", "steps", "defence", "attacker"]
    assert (table.groupby(["attacker", "steps"]).size() == 2).all()
    shown = defences.matrix(table)
    assert list(shown.columns) == [a for a in defences.ATTACKERS if a != defences.WORDS]
    assert shown.loc["as it is"].str.endswith("(1)").all()


def test_a_long_search_goes_on_only_where_nothing_came_back(roomy, monkeypatch):
    """Image a is back at step 10 and lost again, b comes at 100, c never, as in a whole search."""
    truth = {"a": {10: True}, "b": {100: True, 500: True}, "c": {}}
    asked = []

    def searched(study, prompts, plan, **_):
        asked.append((tuple(prompts.ids), plan.steps))
        rows = [
            (i, seed, 0.9, seed == 0 and truth[i].get(s, False), s)
            for i in prompts.ids
            for s in plan.steps
            for seed in (0, 1)
        ]
        table = pd.DataFrame(rows, columns=["id", "seed", "score", "replicated", "steps"])
        table.attrs["skipped"] = {}
        return table

    monkeypatch.setattr(defences, "attack_table", searched)
    one = roomy.memorized.table.iloc[[0, 0, 0]].set_axis(list(truth))
    prompts = dataclasses.replace(roomy.memorized, table=one)
    table = defences.ask(defences.Defence("d", roomy), defences.LONG, prompts, roomy.sampling(seeds=2))
    looks = defences.SEARCHES[defences.LONG].steps
    assert asked == [(("a", "b", "c"), (0, 10, 25, 50)), (("b", "c"), looks)]
    assert table.groupby("id").size().to_dict() == dict.fromkeys(truth, 2 * len(looks))
    times = first_success(table).set_index("id")
    assert times["steps"].to_dict() == {"a": 10, "b": 100, "c": 500}
    assert times["returned"].to_dict() == {"a": True, "b": True, "c": False}
    last = table[table["steps"] == 500].groupby("id")["replicated"].any()
    assert last.to_dict() == {"a": True, "b": True, "c": False}


def test_the_matrix_counts_images_at_the_last_look():
    rows = [
        ("a", 0, 0.9, True, 10),
        ("a", 0, 0.1, False, 50),
        ("b", 0, 0.9, True, 50),
        ("b", 1, 0.1, False, 50),
    ]
    table = pd.DataFrame(rows, columns=["id", "seed", "score", "replicated", "steps"])
    shown = defences.matrix(table.assign(defence="d", attacker=defences.LONG))
    assert shown.loc["d", defences.LONG].startswith("0.50 [")


def test_held_out_settings_are_none_of_those_trained_against():
    trained, judged = Adversarial(), defences.SEARCHES[defences.HEADLINE]
    assert judged.init not in trained.inits
    assert judged.optimizer != trained.search.optimizer
    assert judged.lr != trained.search.lr
    assert judged.batch != trained.search.batch


def test_relearning_moves_a_copy_and_its_result_is_kept(roomy, monkeypatch):
    settings = Relearning(steps=2, batch=1, lr=1e-3, plan=Attack(steps=(1,), batch=1))
    before, seen = weights(roomy.model), []
    attack = relearning.attack_table

    def noted(study, *more, **some):
        seen.append(copy.deepcopy(study.model.unet.state_dict()))
        return attack(study, *more, **some)

    monkeypatch.setattr(relearning, "attack_table", noted)
    prompts, sampling = roomy.memorized.head(2), roomy.sampling(seeds=2)
    table = relearned_table(roomy, prompts, settings, sampling=sampling)
    assert all(torch.equal(before[k], v) for k, v in roomy.model.unet.state_dict().items())
    assert all(not torch.equal(before[k], seen[0][k]) for k in before)
    again = relearned_table(roomy, prompts, settings, sampling=sampling)
    pd.testing.assert_frame_equal(table, again)
    assert len(seen) == 1
    assert list(table["id"]) == [i for i in prompts.ids for _ in range(2)]
    relearned_table(roomy, prompts, dataclasses.replace(settings, steps=1), sampling=sampling)
    assert len(seen) == 2


def test_the_record_tells_how_a_defence_was_made(shipped):
    _, record, folder = shipped
    kept = json.loads((folder / "cured.json").read_text())
    assert kept["defences"]["adversarial"] == json.loads(json.dumps(record))
    assert {"seconds", "threads", "versions", "seed", "steps", "label"} <= record.keys()
    assert [row["epoch"] for row in record["epochs"]] == [1]
    assert record["epochs"][0][defences.PROMPT]["n"] == len(record["erased"])


def test_rows_through_the_network_are_counted(roomy, shipped):
    _, record, _ = shipped
    targets, rounds = len(record["erased"]), QUICK.rounds(len(record["erased"]))
    trained = targets + rounds * QUICK.retain  # a row of each target, and regular pairs in each round's step
    searched = targets + rounds  # one step of one draw each, and a row in each round that measures the memory
    assert record["unet_rows"] >= trained + searched


@pytest.mark.parametrize("path", [trials.TRIALS, trials.ABLATIONS], ids=lambda path: path.stem)
def test_trials_are_of_settings_that_exist_and_rates_of_whole_images(path):
    table = pd.read_csv(path)
    for _, row in table.iterrows():
        options.chosen(row["defence"], curing.PUBLISHED, options.assignments(row["settings"].split()))
        for name in trials.RATES:
            hits = row[name] * row["n"]
            assert hits == pytest.approx(round(hits), abs=0.005 * row["n"] + 1e-9)  # two decimals
            assert 0 <= round(hits) <= row["n"]
    shown = trials.shown(path)
    assert shown["training"].notna().all()
    assert not shown["settings"].duplicated().any()


def test_what_the_chapter_shows_was_tried_before_on_the_other_half():
    tried = pd.read_csv(trials.TRIALS)
    for name, settings in curing.SETTINGS.items():
        rows = tried.loc[tried["defence"] == name, "settings"]
        asked = [options.chosen(name, curing.PUBLISHED, options.assignments(r.split())) for r in rows]
        assert settings in asked, name
