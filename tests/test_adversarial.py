"""Adversarial fine-tuning: what a step computes, what a round searches, and that a stopped run goes on."""

import copy
import dataclasses

import pytest
import torch

from dori.attack import Attack, dori_attack, initial_embeds
from dori.errors import DoriError
from dori.mitigation.adversarial import PART, Adversarial, _Duel, adversarial
from dori.mitigation.lora import adapted
from dori.mitigation.surrogates import Drawing, make_surrogates
from dori.mitigation.targets import Batch, Retain, Targets, denoising_loss, draw_noise, retain_batch
from dori.training import Fit, step_rng
from tests.conftest import adapt, make_pipeline

PROMPTS = ("one red boat", "two blue house", "kalor vesta")
REGULAR = ["dusk lake", "dawn hill", "noon house"]
SMALL = Adversarial(epochs=2, search=Attack(steps=(2,), batch=2), at_once=2, steps=2, retain=3, lr=1e-3)


@pytest.fixture
def model():
    """A pipeline of its own, as training changes it."""
    return adapt(make_pipeline())


@pytest.fixture
def targets(model):
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    return Targets(("a", "b", "c"), PROMPTS, latents, model.encode_prompts(PROMPTS))


@pytest.fixture
def surrogates():
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(2, 4, 8, 8, generator=generator) for _ in range(3)]


@pytest.fixture
def retain(model):
    latents = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    return Retain(latents, model.encode_prompts(REGULAR + REGULAR[:2]))


def weights(model) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.unet.state_dict().items()}


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_step_is_the_sum_of_both_losses(model, targets, surrogates, retain):
    settings = Adversarial(search=Attack(steps=(1,), batch=1), at_once=3, steps=1, retain=3, weight=0.5)
    model.unet.requires_grad_(True)
    duel = _Duel(model, targets, surrogates, retain, settings, seed=0, regular=REGULAR)
    loss, apart = duel.loss(0, step_rng(0, PART, 0))
    gradient = torch.autograd.grad(loss, model.unet.conv_in.weight)[0]

    rng = step_rng(0, PART, 0)  # by hand: the same numbers, the two losses one after the other
    rows, triggers = duel.search(0)
    chosen = torch.stack([surrogates[r][int(rng.integers(2))] for r in rows])
    noise, t = draw_noise(model, 3, rng)
    against = denoising_loss(model, Batch(chosen, triggers[:, 0], noise, t))
    keep = denoising_loss(model, retain_batch(model, retain, 3, rng))
    by_hand = torch.autograd.grad(0.5 * against + keep, model.unet.conv_in.weight)[0]
    assert apart == pytest.approx({"adversarial": against.item(), "retain": keep.item()}, rel=1e-4)
    torch.testing.assert_close(gradient, by_hand, rtol=1e-3, atol=1e-6)


def test_a_round_searches_on_the_weights_of_the_moment(model, targets, surrogates, retain):
    settings = Adversarial(search=Attack(steps=(3,), batch=2), inits=("prompt",), at_once=1)
    duel = _Duel(model, targets, surrogates, retain, settings, seed=4, regular=())
    (row,), before = duel.search(0)
    with torch.no_grad():
        model.unet.conv_in.weight.mul_(1.5)
    (again,), after = duel.search(0)
    assert row == again
    assert not torch.equal(before, after)
    seed = int(step_rng(4, "triggers", 0).integers(2**48, size=1)[0])
    start = initial_embeds(model, "prompt", prompts=[PROMPTS[row]], seeds=[seed])
    alone = dori_attack(model, targets.latents[[row]], start, settings.search, seeds=[seed])
    assert torch.equal(after[:, 0], alone.embeds)


def test_an_epoch_takes_each_image_once_and_rounds_start_from_all_sorts(model, targets, surrogates, retain):
    settings = Adversarial(search=Attack(steps=(0,), batch=1), at_once=2)
    duel = _Duel(model, targets, surrogates, retain, settings, seed=0, regular=REGULAR)
    epochs = [[int(r) for k in (2 * e, 2 * e + 1) for r in duel.search(k)[0]] for e in range(4)]
    assert all(sorted(epoch) == [0, 1, 2] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    starts = torch.cat([duel.search(k)[1][:, 0] for k in range(8)])  # no step is taken: these are the starts
    prompts = model.encode_prompts([*PROMPTS, *REGULAR])
    kinds = {
        "prompt" if (p := (start - prompts).flatten(1).norm(dim=1).argmin().item()) < 3 else "regular"
        if torch.allclose(start, prompts[p], atol=1e-5) else "random"
        for start in starts
    }  # fmt: skip
    kinds |= {"random"} if any((s - prompts).flatten(1).norm(dim=1).min() > 1 for s in starts) else set()
    assert {"prompt", "regular", "random"} <= kinds


def test_nothing_but_the_unet_moves_and_gradients_are_as_before(model, targets, surrogates, retain, tmp_path):
    before, vae, text = (
        weights(model),
        *(copy.deepcopy(m.state_dict()) for m in (model.pipe.vae, model.pipe.text_encoder)),
    )
    wanted = [p.requires_grad for p in model.unet.parameters()]
    adversarial(model, targets, surrogates, retain, SMALL, run_dir=tmp_path, regular=REGULAR)
    after = weights(model)
    assert all(not torch.equal(before[k], after[k]) for k in before)
    assert same(vae, model.pipe.vae.state_dict())
    assert same(text, model.pipe.text_encoder.state_dict())
    assert [p.requires_grad for p in model.unet.parameters()] == wanted
    assert not model.unet.training


def test_without_targets_weight_it_is_plain_fine_tuning(targets, surrogates, retain, tmp_path):
    """Oracle of methods.md 7: with no weight on the triggers, they cannot matter."""
    results = []
    for k, at in enumerate((surrogates, [s + 1 for s in surrogates])):
        model = adapt(make_pipeline())
        settings = Adversarial(**{**vars(SMALL), "weight": 0.0})
        adversarial(model, targets, at, retain, settings, run_dir=tmp_path / str(k), regular=REGULAR)
        results.append(weights(model))
    assert same(*results)


def test_the_learning_rate_falls_in_the_last_share_of_the_steps(
    model, targets, surrogates, retain, tmp_path, monkeypatch
):
    rates = []
    monkeypatch.setattr(Fit, "run", lambda self: rates.extend(map(self.schedule, range(self.schedule.steps))))
    settings = dataclasses.replace(SMALL, steps=5, decay=0.5)
    adversarial(model, targets, surrogates, retain, settings, run_dir=tmp_path, regular=REGULAR)
    half = len(rates) // 2
    assert len(rates) == settings.total(len(targets))
    assert rates[:half] == [settings.lr] * half
    assert rates[half:] == pytest.approx([settings.lr * (half - k) / half for k in range(half)])


@pytest.mark.parametrize(("rank", "decay"), [(None, 0.5), (2, 0.0)])
def test_a_run_that_was_stopped_ends_with_the_same_weights(
    targets, surrogates, retain, tmp_path, monkeypatch, rank, decay
):
    settings = dataclasses.replace(SMALL, rank=rank, decay=decay)
    whole = adapt(make_pipeline())
    adversarial(whole, targets, surrogates, retain, settings, run_dir=tmp_path / "whole", regular=REGULAR)

    class Killed(Exception):
        pass

    search = _Duel.search

    def dying(self, number):
        if number == 3:
            raise Killed
        return search(self, number)

    stopped = adapt(make_pipeline())
    before = weights(stopped)
    with monkeypatch.context() as patch:
        patch.setattr(_Duel, "search", dying)
        with pytest.raises(Killed):
            adversarial(
                stopped, targets, surrogates, retain, settings, run_dir=tmp_path / "cut", regular=REGULAR
            )
    if rank:
        assert same(before, weights(stopped))  # adapters that were not finished are dropped
    again = adapt(make_pipeline())
    adversarial(again, targets, surrogates, retain, settings, run_dir=tmp_path / "cut", regular=REGULAR)
    assert same(weights(whole), weights(again))


def test_lora_trains_adapters_alone_and_merges_them(model, targets, surrogates, retain, tmp_path):
    before = weights(model)
    settings = Adversarial(**{**vars(SMALL), "rank": 2})
    adversarial(model, targets, surrogates, retain, settings, run_dir=tmp_path, regular=REGULAR)
    after = weights(model)
    assert after.keys() == before.keys()
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    assert moved
    assert all("attn" in k or "ff.net" in k for k in moved)
    change = after[k := next(k for k in sorted(moved) if "attn2.to_v" in k)] - before[k]
    assert torch.linalg.matrix_rank(change) <= 2


def test_an_exception_leaves_no_adapter(model):
    before = weights(model)

    def fail():
        with adapted(model.unet, 2):
            next(p for n, p in model.unet.named_parameters() if "lora_B" in n).data.fill_(1)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert same(before, weights(model))


def test_a_spoilt_loss_stops_with_one_line_and_keeps_the_checkpoint(
    model, targets, surrogates, retain, tmp_path
):
    good = [s.clone() for s in surrogates]
    settings = Adversarial(**{**vars(SMALL), "epochs": 1})
    adversarial(model, targets, good, retain, settings, run_dir=tmp_path, regular=REGULAR)
    kept = (tmp_path / f"{PART}.pt").read_bytes()
    bad = [torch.full_like(s, float("nan")) for s in surrogates]
    with pytest.raises(DoriError, match="loss is nan at step 4") as stopped:
        adversarial(model, targets, bad, retain, SMALL, run_dir=tmp_path, regular=REGULAR)
    assert "\n" not in str(stopped.value)
    assert (tmp_path / f"{PART}.pt").read_bytes() == kept


def test_searches_that_are_not_finite_stop_the_run(model, targets, surrogates, retain, tmp_path):
    model.unet.conv_out.weight.data.fill_(float("nan"))
    with pytest.raises(DoriError, match="round 0: no search"):
        adversarial(model, targets, surrogates, retain, SMALL, run_dir=tmp_path, regular=REGULAR)


def test_weights_of_each_epoch_are_kept(model, targets, surrogates, retain, tmp_path):
    from safetensors.torch import load_file

    adversarial(model, targets, surrogates, retain, SMALL, run_dir=tmp_path, regular=REGULAR)
    one, two = (load_file(tmp_path / f"{PART}-epoch-{k}.safetensors") for k in (1, 2))
    assert same(two, weights(model))
    assert not same(one, two)


def test_an_image_is_searched_from_several_starts_and_every_look_counts(model, targets, surrogates, retain):
    search = Attack(steps=(0, 1, 2), batch=1)
    settings = Adversarial(search=search, at_once=2, starts=3, draws=40, retain=1)
    duel = _Duel(model, targets, surrogates, retain, settings, seed=0, regular=REGULAR)
    rows, triggers = duel.search(0)
    assert len(set(rows)) == 2
    assert all(list(rows).count(r) == 3 for r in set(rows))
    assert triggers.shape[:2] == (6, 3)
    prompts = model.encode_prompts(PROMPTS)
    at_prompt = [torch.allclose(t[0], prompts[r], atol=0.5) for r, t in zip(rows, triggers, strict=True)]
    assert sum(at_prompt) == 2  # one of each image's three starts
    duel.rows, duel.triggers = rows, triggers
    batch = duel.against(step_rng(0, PART, 0))
    assert len(batch) == 6 * 40
    every = triggers.flatten(0, 1).flatten(1)  # two searches may start from the same regular prompt
    used, there = (
        torch.cdist(e.flatten(1), every).argmin(1) for e in (batch.prompt_embeds, triggers.flatten(0, 1))
    )
    assert set(used.tolist()) == set(there.tolist())


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"inits": ("nowhere",)},
        {"inits": ()},
        {"rank": 0},
        {"lr": 0.0},
        {"decay": 1.5},
        {"retain": -1},
        {"starts": 4},
    ],
)
def test_settings_that_are_none_are_refused(wrong):
    with pytest.raises(DoriError):
        Adversarial(**wrong)


def test_missing_surrogates_and_retain_pairs_are_refused(model, targets, surrogates, retain, tmp_path):
    with pytest.raises(DoriError, match="surrogate"):
        adversarial(model, targets, [*surrogates[:2], surrogates[0][:0]], retain, SMALL, run_dir=tmp_path)
    empty = Retain(retain.latents[:0], retain.prompt_embeds[:0])
    with pytest.raises(DoriError, match="retain set is empty"):
        adversarial(model, targets, surrogates, empty, SMALL, run_dir=tmp_path, regular=REGULAR)


def test_memory_savers_compute_the_same(targets, surrogates, retain, tmp_path):
    found = []
    for on in (False, True):
        model = adapt(make_pipeline())
        settings = Adversarial(**{**vars(SMALL), "epochs": 1, "checkpointing": on})
        adversarial(model, targets, surrogates, retain, settings, run_dir=tmp_path / str(on), regular=REGULAR)
        found.append(weights(model))
    assert all(torch.allclose(found[0][k], found[1][k], atol=1e-5) for k in found[0])


# Surrogates


@pytest.fixture
def originals():
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(5))


def test_a_planted_copy_is_refused_and_drawn_again(model, targets, originals, descriptor, monkeypatch):
    sample, calls = model.sample, []

    def planted(embeds, seeds, **options):
        images = sample(embeds, seeds, num_inference_steps=2)
        calls.append(len(seeds))
        if len(calls) == 1:
            images[0] = originals[1]  # of another target than the one it is drawn for
        return images

    monkeypatch.setattr(model, "sample", planted)
    plan = Drawing(count=2, tries=4, ceiling=0.99)
    found = make_surrogates(model, targets, originals, descriptor, {}, plan)
    assert found[0].refused >= 1
    assert calls[0] == 2
    assert all(score < 0.99 for one in found for score in one.scores)
    assert all(len(one.latents) == len(one.scores) for one in found)


def test_where_every_image_copies_regular_prompts_stand_in(
    model, targets, originals, descriptor, monkeypatch
):
    def copying(embeds, seeds, **options):
        own = (embeds[0] - targets.prompt_embeds).flatten(1).norm(dim=1).min() < 1e-4
        if own:
            return originals[:1].repeat(len(seeds), 1, 1, 1)
        return torch.rand(len(seeds), 3, 16, 16, generator=torch.Generator().manual_seed(seeds[0]))

    monkeypatch.setattr(model, "sample", copying)
    plan = Drawing(count=2, tries=2, ceiling=0.9)
    found = make_surrogates(model, targets, originals, descriptor, {}, plan, regular=REGULAR)
    assert all(one.regular and one.refused == 4 for one in found)
    with pytest.raises(DoriError, match="a: all images"):
        make_surrogates(model, targets, originals, descriptor, {}, plan)


def test_a_surrogate_is_drawn_with_the_units_off(model, targets, originals, descriptor):
    layer = next(iter(model.value_layers()))
    off = {layer: torch.ones(model.value_layers()[layer].out_features, dtype=torch.bool)}
    plan = Drawing(count=1, ceiling=2.0, steps=2)
    bare = make_surrogates(model, targets, originals, descriptor, {}, plan)
    cut = make_surrogates(model, targets, originals, descriptor, {"b": off}, plan)
    assert [torch.equal(x.latents, y.latents) for x, y in zip(bare, cut, strict=True)] == [True, False, True]
