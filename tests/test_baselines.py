"""ESD, concept ablation and SISS: numbers by hand, one step's gradient, and what a run leaves behind."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from conftest import adapt, make_pipeline

from dori.errors import DoriError
from dori.mitigation import siss as siss_module
from dori.mitigation.concept_ablation import Anchors, ConceptAblation, concept_ablation, make_anchors
from dori.mitigation.esd import ESD, PARAMETERS, esd, esd_target, parameter_names, trajectories
from dori.mitigation.siss import SISS, draw, gradient_norm, importance_weights, siss, siss_losses
from dori.mitigation.targets import Retain, Targets, denoising_loss, draw_noise, retain_batch
from dori.sampling import alpha_sigma, ddim, guided
from dori.training import Fit, step_rng

KINDS = ("epsilon", "v_prediction")
METHODS = ("esd", "concept_ablation", "siss")
PROMPTS = ("red boat", "blue house", "one lake", "two hill", "dawn boat")


@pytest.fixture(params=["epsilon"])
def model(request):
    """A model of the test's own, as training changes it."""
    return adapt(make_pipeline(request.param))


def data(model):
    """Two targets, two anchors for the first and one for the second, three pairs to keep."""
    embeds = model.encode_prompts(PROMPTS)
    x = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    targets = Targets(("a", "b"), PROMPTS[:2], x[:2], embeds[:2])
    anchors = Anchors((embeds[2:4], embeds[4:]), (x[2:4], x[4:5]))
    return targets, anchors, Retain(x[3:], embeds[2:])


def train(method, model, run_dir, *, steps=4, lr=1e-3, seed=0, checkpoint_every=2, **settings):
    """One of the three with settings of a test's size."""
    targets, anchors, retain = data(model)
    how = {"run_dir": run_dir, "seed": seed, "checkpoint_every": checkpoint_every}
    settings = {"batch": 3, "steps": steps, **settings}
    if method == "esd":
        esd(model, targets, ESD(lr=lr, **{"trajectories": 2, **settings}), **how)
    elif method == "concept_ablation":
        concept_ablation(model, targets, anchors, retain, ConceptAblation(base_lr=lr, **settings), **how)
    else:
        siss(model, targets, retain, SISS(lr=lr, **settings), **how)


def weights(model):
    return {name: p.detach().clone() for name, p in model.unet.named_parameters()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def gradients(monkeypatch):
    """The gradient of each step, as it was before clipping."""
    found, clip = [], torch.nn.utils.clip_grad_norm_

    def spy(parameters, limit):
        found.append([p.grad.clone() for p in parameters])
        assert limit == 1.0
        return clip(parameters, limit)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", spy)
    return found


@pytest.fixture
def values(monkeypatch):
    """What each step logs."""
    found, step = [], Fit._one_step

    def spy(fit):
        found.append(step(fit))
        return found[-1]

    monkeypatch.setattr(Fit, "_one_step", spy)
    return found


def agree(found, wanted):
    """Gradients are the same but for rounding, and are some."""
    found, wanted = (torch.cat([x.flatten() for x in part]) for part in (found, wanted))
    assert wanted.norm() > 0
    assert (found - wanted).norm() < 1e-4 * wanted.norm()


# ESD


def test_the_rule_of_esd_by_hand():
    empty, cond = torch.tensor([1.0, 0.0]), torch.tensor([3.0, -2.0])
    assert esd_target(empty, cond, 2.0).tolist() == [-1.0, 2.0]  # 2 eps_0 - eps_c
    assert esd_target(empty, cond, 1.0).tolist() == [1.0, 0.0]
    assert esd_target(empty, cond, 0.0).tolist() == [3.0, -2.0]


@pytest.mark.parametrize("model", KINDS, indirect=True)
def test_trajectories_are_the_frozen_models_at_guidance_3_and_their_target_is_that_of_eps(model):
    targets = data(model)[0]
    path = trajectories(model, targets, ESD(trajectories=2, sampling_steps=4))
    assert path.noisy.shape == path.wanted.shape == (2, 2, 4, 4, 8, 8)
    scheduler = model.new_scheduler()
    scheduler.set_timesteps(4)
    assert path.timesteps.tolist() == scheduler.timesteps.tolist()
    embeds = targets.prompt_embeds[1:]
    x = ddim(
        lambda x, t: guided(*model.predict_both(x, t, embeds), 3.0),
        path.noisy[1, 1, :1], model.new_scheduler(), num_inference_steps=4, stop_after=2,
    )  # fmt: skip
    torch.testing.assert_close(path.noisy[1, 1, 2:3], x, atol=1e-5, rtol=1e-5)
    t = path.timesteps[2:3]
    with torch.no_grad():
        empty, cond = (model.as_epsilon(e, x, t) for e in model.predict_both(x, t, embeds))
    found = model.as_epsilon(path.wanted[1, 1, 2:3], x, t)
    torch.testing.assert_close(found, 2 * empty - cond, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found, cond, atol=1e-3)


def test_a_trajectorys_noise_follows_from_the_target_alone(model):
    targets, settings = data(model)[0], ESD(trajectories=2, sampling_steps=1)
    second = Targets(*(getattr(targets, f.name)[1:] for f in dataclasses.fields(targets)))
    both, alone = (trajectories(model, t, settings).noisy[-1, :, 0] for t in (targets, second))
    assert torch.equal(both, alone)
    starts = trajectories(model, targets, settings).noisy[:, :, 0].flatten(0, 1)
    assert len({x.sum().item() for x in starts}) == 4
    assert not torch.equal(both, trajectories(model, second, settings, seed=1).noisy[0, :, 0])


def test_parameter_sets_by_their_names(model):
    sets = {which: parameter_names(model.unet, which) for which in PARAMETERS}
    blocks = len(model.value_layers(up=True))
    layers = sorted({name.rsplit(".attn2.")[1] for name in sets["esd-x"]})
    assert layers == ["to_k.weight", "to_out.0.bias", "to_out.0.weight", "to_q.weight", "to_v.weight"]
    assert len(sets["esd-x"]) == 5 * blocks
    assert len(sets["esd-x-strict"]) == 2 * blocks
    assert all(name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")) for name in sets["esd-x-strict"])
    assert not any("attn2" in name for name in sets["esd-u"])
    assert sets["esd-x"] | sets["esd-u"] == sets["esd-all"] == set(weights(model))


@pytest.mark.parametrize("parameters", PARAMETERS)
def test_esd_moves_its_parameter_set_and_nothing_else(model, tmp_path, parameters):
    before = weights(model)
    train("esd", model, tmp_path, steps=2, parameters=parameters)
    moved = {name for name, w in weights(model).items() if not torch.equal(w, before[name])}
    names = parameter_names(model.unet, parameters)
    assert moved <= names
    assert len(moved) > 0.9 * len(names)  # a key's gradient may vanish where one token has all attention


@pytest.mark.parametrize("model", KINDS, indirect=True)
def test_a_step_of_esd_against_one_made_by_hand(model, tmp_path, gradients):
    targets = data(model)[0]
    path = trajectories(model, targets, ESD(trajectories=2), seed=5)
    rng = step_rng(5, "esd", 0)
    target, sample, step = (rng.integers(n, size=3) for n in (2, 2, 5))
    unet, total = copy.deepcopy(model.unet).requires_grad_(), 0
    for i, k, s in zip(target, sample, step, strict=True):
        x, t, c = path.noisy[i, k, s][None], path.timesteps[s], targets.prompt_embeds[i][None]
        with torch.no_grad():
            wanted = 2 * unet(x, t, model.unconditional).sample - unet(x, t, c).sample
        total = total + (unet(x, t, c).sample - wanted).square().mean() / 3
    train("esd", model, tmp_path, steps=1, seed=5, parameters="esd-all")
    agree(gradients[0], torch.autograd.grad(total, list(unet.parameters())))


def test_esd_nears_the_opposite_of_the_caption(model, tmp_path, values):
    train("esd", model, tmp_path, steps=30, lr=3e-3, parameters="esd-all")
    losses = [v["loss"] for v in values]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


# Concept ablation


def own_captions(model):
    """Anchors that are the targets' own captions."""
    targets, anchors, retain = data(model)
    return targets, Anchors(tuple(e[None] for e in targets.prompt_embeds), (anchors.latents[1],) * 2), retain


def test_a_caption_that_already_means_its_anchor_costs_nothing(model, tmp_path, values):
    targets, anchors, retain = own_captions(model)
    before = weights(model)
    settings = ConceptAblation(prior_weight=0, steps=3, base_lr=1e-2, weight_decay=0)
    concept_ablation(model, targets, anchors, retain, settings, run_dir=tmp_path)
    assert [v["loss"] for v in values] == [0.0] * 3
    assert same(before, weights(model))


def test_the_prior_alone_moves_nothing_to_speak_of(model, tmp_path, values):
    targets, anchors, retain = own_captions(model)
    x, t = model.initial_latents([0, 1]), torch.tensor([500, 900])
    settings = ConceptAblation(steps=5)
    before = model.predict(x, t, targets.prompt_embeds)
    concept_ablation(model, targets, anchors, retain, settings, run_dir=tmp_path)
    change = model.predict(x, t, targets.prompt_embeds) - before
    assert 0 < change.norm() < 1e-3 * before.norm()
    assert values[0]["ablation"] == 0.0
    assert max(v["ablation"] for v in values) < 1e-6 < min(v["prior"] for v in values)


@pytest.mark.parametrize("kind", ["model", "noise"])
@pytest.mark.parametrize("model", KINDS, indirect=True)
def test_a_step_of_concept_ablation_against_one_made_by_hand(model, tmp_path, gradients, kind):
    targets, anchors, retain = data(model)
    rng = step_rng(2, "concept_ablation", 0)
    target = rng.integers(2, size=3)
    image = [rng.integers(2 if i == 0 else 1) for i in target]
    noise, t = draw_noise(model, 3, rng)
    twin = adapt(make_pipeline(model.prediction_type))
    twin.unet.requires_grad_()
    total = 0.5 * denoising_loss(twin, retain_batch(twin, retain, 3, rng))
    for row, (i, k) in enumerate(zip(target, image, strict=True)):
        x0, t_row = anchors.latents[i][k][None], t[row : row + 1]
        x = model.add_noise(x0, noise[row : row + 1], t_row)
        wanted = model.target(x0, noise[row : row + 1], t_row)
        if kind == "model":
            with torch.no_grad():
                wanted = model.predict(x, t_row, anchors.prompt_embeds[i][k][None])
        total = total + (twin.predict(x, t_row, targets.prompt_embeds[i][None]) - wanted).square().mean() / 3
    train("concept_ablation", model, tmp_path, steps=1, seed=2, loss=kind, prior_weight=0.5)
    agree(gradients[0], torch.autograd.grad(total, list(twin.unet.parameters())))


def test_concept_ablation_brings_a_caption_to_its_anchors(model, tmp_path, values):
    train("concept_ablation", model, tmp_path, steps=20, lr=1e-5, batch=6, prior_weight=0, weight_decay=0)
    losses = [v["ablation"] for v in values]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


def test_the_learning_rate_of_concept_ablation_grows_with_the_batch():
    assert ConceptAblation().lr == pytest.approx(1e-6)
    assert ConceptAblation(batch=8).lr == pytest.approx(4e-6)


def test_anchors_are_the_kept_images_of_the_best_paraphrases(model):
    targets = data(model)[0]
    masks = {
        "a": [0, 0, 0, 1, 1, 1, 1, 0, 1],
        "b": [0, 1, 0, 0, 0, 0, 0, 0, 0],
    }  # three images of each of three
    seen = {}

    def keep(images, name):
        seen[name] = images
        return torch.tensor(masks[name], dtype=torch.bool)

    prompts = [PROMPTS[2:], PROMPTS[1:4]]
    anchors = make_anchors(model, targets, prompts, keep=keep, images_per_prompt=3, anchor_prompts=2)
    assert seen["a"].shape == (9, 3, 16, 16)
    for mine, theirs, images in ((0, [3, 4, 5, 6, 8], seen["a"]), (1, [1], seen["b"])):
        torch.testing.assert_close(anchors.latents[mine], model.encode_images(images[theirs]))
        wanted = model.encode_prompts([prompts[mine][i // 3] for i in theirs])
        torch.testing.assert_close(anchors.prompt_embeds[mine], wanted)
    assert len({x.sum().item() for x in seen["a"]}) == 9
    first = seen["a"]
    masks = {"a": [1], "b": [1]}
    make_anchors(model, targets, [PROMPTS[3:4], PROMPTS[:1]], keep=keep, images_per_prompt=1)
    torch.testing.assert_close(seen["a"][0], first[3], atol=1e-5, rtol=0)  # its noise knows no company


def test_the_third_best_paraphrase_is_left_out(model):
    targets = data(model)[0]
    mask = torch.tensor([1, 0, 1, 1, 0, 0, 1, 1], dtype=torch.bool)  # 1, 2, 0 and 2 of two images
    anchors = make_anchors(
        model, targets, [PROMPTS[:4]] * 2, keep=lambda *_: mask, images_per_prompt=2, anchor_prompts=2
    )
    wanted = model.encode_prompts([PROMPTS[1]] * 2 + [PROMPTS[3]] * 2)
    torch.testing.assert_close(anchors.prompt_embeds[0], wanted)


def test_a_target_without_anchors_is_named(model):
    targets = data(model)[0]

    def keep(images, name):
        return torch.full((len(images),), name == "a")

    with pytest.raises(DoriError, match="target 'b': all 2 images of its 1 paraphrases are copies"):
        make_anchors(model, targets, [PROMPTS[2:3]] * 2, keep=keep, images_per_prompt=2)
    with pytest.raises(DoriError, match="target 'b' has no paraphrases"):
        make_anchors(model, targets, [PROMPTS[2:3], []], keep=keep, images_per_prompt=1)
    with pytest.raises(DoriError, match="1 lists of paraphrases for 2 targets"):
        make_anchors(model, targets, [PROMPTS[2:3]], keep=keep)


# SISS


def test_importance_weights_by_hand():
    w_x, w_a = importance_weights(torch.tensor([0.0, 1.0, -1.0]), 0.5)
    torch.testing.assert_close(w_x, torch.tensor([1.0, 0.5379, 1.4621]), atol=1e-4, rtol=0)
    torch.testing.assert_close(w_a, torch.tensor([1.0, 1.4621, 0.5379]), atol=1e-4, rtol=0)
    w_x, w_a = importance_weights(torch.tensor(1.0), 0.25)
    assert w_x.item() == pytest.approx(1 / (0.75 + 0.25 * np.e), rel=1e-5)
    assert w_a.item() == pytest.approx(1 / (0.75 / np.e + 0.25), rel=1e-5)


@pytest.mark.parametrize("mixture", [0.1, 0.5, 0.9])
def test_the_mixture_of_the_weights_is_one_for_every_delta(mixture):
    delta = torch.tensor([-1e6, -90.0, -3.0, 0.0, 0.7, 61.0, 1e6])
    w_x, w_a = importance_weights(delta, mixture)
    torch.testing.assert_close((1 - mixture) * w_x + mixture * w_a, torch.ones(7))
    assert w_x[0].item() == pytest.approx(1 / (1 - mixture))
    assert w_x[-1] == w_a[0] == 0


def test_forgetting_what_is_kept_has_one_gradient(model):
    """x = a: both weights are 1 and g_x = g_a."""
    targets, _, retain = data(model)
    kept = Retain(targets.latents[:1], retain.prompt_embeds[:1])
    one = Targets(("a",), ("red boat",), targets.latents[:1], targets.prompt_embeds[:1])
    rows = draw(model, one, kept, SISS(batch=4), step_rng(0, "siss", 0))
    model.unet.requires_grad_()
    keep, forget, w_x, w_a = siss_losses(model, rows, 0.5)
    assert w_x.tolist() == w_a.tolist() == [1.0] * 4
    g_x, g_a = (torch.autograd.grad(x, model.unet.parameters(), retain_graph=True) for x in (keep, forget))
    assert all(torch.equal(a, b) for a, b in zip(g_x, g_a, strict=True))


def losses_by_hand(model, rows, mixture):
    """L_x and L_a, row by row, as they are written down."""
    keep = forget = 0
    for x, a, m, t, c in zip(
        rows.keep, rows.forget, rows.noisy, rows.timesteps, rows.prompt_embeds, strict=True
    ):
        alpha, sigma = (z.item() for z in alpha_sigma(model.alphas_cumprod, t[None], m))
        output = model.predict(m[None], t[None], c[None])[0]
        eps = output if model.prediction_type == "epsilon" else alpha * output + sigma * m
        far, near = ((m - alpha * z).double().square().sum().item() for z in (x, a))
        delta = min(500.0, (far - near) / (2 * sigma**2))
        w_x = 1 / (1 - mixture + mixture * np.exp(delta))
        w_a = 1 / ((1 - mixture) * np.exp(-delta) + mixture)
        keep = keep + w_x * (eps - (m - alpha * x) / sigma).square().sum() / len(rows.keep)
        forget = forget + w_a * (eps - (m - alpha * a) / sigma).square().sum() / len(rows.keep)
    return keep, forget


@pytest.mark.parametrize("timesteps", ["all", "last"])
@pytest.mark.parametrize("model", KINDS, indirect=True)
def test_a_step_of_siss_against_one_made_by_hand(model, tmp_path, gradients, values, timesteps):
    targets, _, retain = data(model)
    settings = SISS(batch=5, mixture=0.4, timesteps=timesteps)
    near = Retain(
        retain.latents * 0.05 + targets.latents[:1], retain.prompt_embeds
    )  # so near a target that weights lie between 0 and 1 / 0.6
    rows = draw(model, targets, near, settings, step_rng(1, "siss", 0))
    twin = adapt(make_pipeline(model.prediction_type))
    twin.unet.requires_grad_()
    parameters = list(twin.unet.parameters())
    keep, forget = losses_by_hand(twin, rows, 0.4)
    g_x, g_a = (torch.autograd.grad(loss, parameters, retain_graph=True) for loss in (keep, forget))
    s = 7.0 / torch.cat([g.flatten() for g in g_a]).norm()
    settings = dataclasses.replace(settings, steps=1, scaling_norm=7.0)
    siss(model, targets, near, settings, run_dir=tmp_path, seed=1)
    agree(gradients[0], [x - s * a for x, a in zip(g_x, g_a, strict=True)])
    assert values[0]["s"] == pytest.approx(s.item(), rel=1e-3)
    _, _, w_x, w_a = siss_losses(twin, rows, 0.4)
    assert values[0]["w_x"] == pytest.approx(w_x.mean().item(), rel=1e-4)
    assert values[0]["w_a"] == pytest.approx(w_a.mean().item(), rel=1e-4)
    assert ((w_x > 0.1) & (w_x < 1.6)).any()  # neither 0 nor 1 / 0.6


def test_siss_draws_a_mixture_of_both_from_one_noise(model):
    targets, _, retain = data(model)
    rng, again = (step_rng(0, "siss", 3) for _ in range(2))
    rows = draw(model, targets, retain, SISS(batch=400, mixture=0.3), rng)
    a, x, forgetting = again.integers(2, size=400), again.integers(3, size=400), again.random(400) < 0.3
    noise, t = draw_noise(model, 400, again)
    clean = torch.where(
        torch.from_numpy(forgetting)[:, None, None, None], targets.latents[a], retain.latents[x]
    )
    assert torch.equal(rows.noisy, model.add_noise(clean, noise, t))
    assert 0.2 < forgetting.mean() < 0.4
    assert torch.equal(rows.forget, targets.latents[a])
    assert torch.equal(rows.keep, retain.latents[x])
    assert torch.equal(rows.prompt_embeds, targets.prompt_embeds[a])
    assert rows.timesteps.min() < 100 < 900 < rows.timesteps.max()
    own = draw(model, targets, retain, SISS(batch=400, mixture=0.3, captions="own"), step_rng(0, "siss", 3))
    kept = ~torch.from_numpy(forgetting)
    assert torch.equal(own.prompt_embeds[kept], retain.prompt_embeds[x][kept])
    assert torch.equal(own.prompt_embeds[~kept], rows.prompt_embeds[~kept])


def test_the_last_timestep_is_the_only_one_the_published_script_draws(model):
    targets, _, retain = data(model)
    rows = draw(model, targets, retain, SISS(timesteps="last"), step_rng(0, "siss", 0))
    assert set(rows.timesteps.tolist()) == {999}


def test_the_scale_is_a_tenth_of_naive_deletions_gradient(model, tmp_path, values):
    """Which is the gradient of the plain loss, in sums, on x under the captions of the targets."""
    targets, _, retain = data(model)
    settings, twin = SISS(batch=3, steps=1), adapt(make_pipeline())
    twin.unet.requires_grad_()
    norms = []
    for k in range(siss_module.MEASURED):
        rng = step_rng(4, "siss/norm", k)
        a, x, _ = rng.integers(2, size=3), rng.integers(3, size=3), rng.random(3)
        noise, t = draw_noise(twin, 3, rng)
        found = twin.predict(twin.add_noise(retain.latents[x], noise, t), t, targets.prompt_embeds[a])
        loss = (found - noise).square().flatten(1).sum(1).mean()
        norms.append(
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, twin.unet.parameters())]).norm()
        )
    rows = draw(twin, targets, retain, settings, step_rng(4, "siss", 0))
    forget = gradient_norm(siss_losses(twin, rows, 0.5)[1], list(twin.unet.parameters()))
    siss(model, targets, retain, settings, run_dir=tmp_path, seed=4)
    assert values[0]["s"] * forget == pytest.approx(0.1 * np.mean(norms), rel=1e-3)


def test_a_batch_with_nothing_to_forget_is_not_scaled_up():
    assert siss_module._ratio(7.0, 0.0) == 0.0
    assert siss_module._ratio(7.0, 2.0) == 3.5
    assert np.isnan(siss_module._ratio(7.0, float("inf")))


# All three


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_was_cut_short_ends_where_the_whole_one_does(method, model, tmp_path, monkeypatch):
    """And an interruption leaves the model as it was, so that it can be given again."""
    whole, before, step = adapt(make_pipeline()), weights(model), Fit._one_step
    train(method, whole, tmp_path / "whole")
    assert not same(before, weights(whole))
    next(model.unet.parameters()).requires_grad_()  # whatever it was, it is to be that again

    def cut(fit):
        if fit.step == 3:
            raise KeyboardInterrupt
        return step(fit)

    monkeypatch.setattr(Fit, "_one_step", cut)
    with pytest.raises(KeyboardInterrupt):
        train(method, model, tmp_path / "cut")
    assert same(before, weights(model))
    left_alone(model, first=True)
    monkeypatch.setattr(Fit, "_one_step", lambda fit: step(fit) if fit.step >= 2 else pytest.fail("again"))
    train(method, model, tmp_path / "cut")
    assert same(weights(whole), weights(model))
    left_alone(model, first=True)
    left_alone(whole, first=False)


def left_alone(model, *, first):
    """Evaluation mode, no gradients, and only the first weight requires one, if any."""
    asked = [p.requires_grad for p in model.unet.parameters()]
    assert asked[0] is first
    assert not any(asked[1:])
    assert all(p.grad is None for p in model.unet.parameters())
    assert not any(module.training for module in model.unet.modules())


@pytest.mark.parametrize("method", METHODS)
def test_a_diverging_loss_stops_and_the_last_good_checkpoint_stays(method, model, tmp_path, monkeypatch):
    step, before = Fit._one_step, weights(model)

    def spoiled(fit):
        if fit.step == 3:
            loss = fit.loss
            fit.loss = lambda *x: (loss(*x)[0] * float("nan"), {})
        return step(fit)

    monkeypatch.setattr(Fit, "_one_step", spoiled)
    with pytest.raises(DoriError, match=f"^{method}: the loss is nan at step 3; .*{method}.pt") as error:
        train(method, model, tmp_path)
    assert "\n" not in str(error.value)
    kept = torch.load(tmp_path / f"{method}.pt", weights_only=True)
    assert kept["step"] == 2
    assert all(w.isfinite().all() for w in kept["module"].values())
    assert not same(before, kept["module"])
    assert same(before, weights(model))
    left_alone(model, first=False)


@pytest.mark.parametrize("method", METHODS)
def test_a_learning_rate_far_too_large_is_noticed(method, model, tmp_path):
    with pytest.raises(DoriError, match=f"{method}: the loss is (nan|-?inf) at step 1"):
        train(method, model, tmp_path, lr=1e30)


@pytest.mark.parametrize("method", METHODS)
def test_the_seed_decides_the_run(method, tmp_path):
    models = [adapt(make_pipeline()) for _ in range(3)]
    for k, (model, seed) in enumerate(zip(models, (0, 0, 1), strict=True)):
        torch.manual_seed(k)  # the global state has no part in it
        train(method, model, tmp_path / str(k), steps=1, seed=seed)
    first, again, other = map(weights, models)
    assert same(first, again)
    assert not same(first, other)


def test_nothing_to_forget_is_refused(model, tmp_path):
    targets, anchors, retain = data(model)
    none = Targets((), (), targets.latents[:0], targets.prompt_embeds[:0])
    with pytest.raises(DoriError, match="no targets"):
        esd(model, none, run_dir=tmp_path)
    with pytest.raises(DoriError, match="2 targets' anchors for 0 targets"):
        concept_ablation(model, none, anchors, retain, run_dir=tmp_path)
    with pytest.raises(DoriError, match="0 images to forget and 3 to keep"):
        siss(model, none, retain, run_dir=tmp_path)
    with pytest.raises(DoriError, match="retain set is empty"):
        concept_ablation(model, targets, anchors, Retain(targets.latents[:0], targets.prompt_embeds[:0]),
                         run_dir=tmp_path)  # fmt: skip
    with pytest.raises(DoriError, match="anchors"):
        Anchors(anchors.prompt_embeds, anchors.latents[::-1])
    with pytest.raises(DoriError, match="no cross-attention"):
        parameter_names(torch.nn.Linear(1, 1), "esd-u")


@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        (ESD, {"parameters": "esd-y"}),
        (ESD, {"batch": 0}),
        (ESD, {"lr": 0}),
        (ConceptAblation, {"loss": "both"}),
        (ConceptAblation, {"prior_weight": -1}),
        (ConceptAblation, {"steps": 0}),
        (SISS, {"timesteps": "first"}),
        (SISS, {"captions": "none"}),
        (SISS, {"mixture": 1.0}),
        (SISS, {"scaling_norm": -1}),
    ],
)
def test_impossible_settings_are_refused(kind, setting):
    with pytest.raises(DoriError, match=f"{next(iter(setting))}|{next(iter(setting.values()))}"):
        kind(**setting)
