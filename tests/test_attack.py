"""DoRI against mathematics: a denoiser with a known minimum, finite differences, invariances."""

import hashlib

import pytest
import torch
from conftest import adapt, make_pipeline

from dori import attack as module
from dori.attack import Attack, Attacked, dori_attack, initial_embeds, max_batch
from dori.errors import DoriError
from dori.mitigation.units import Units
from dori.model import TextToImageModel
from dori.sampling import alpha_sigma
from dori.store import weights_hash

PROMPTS = ["red boat", "blue house", "one lake"]


def setting(model, n=3):
    images = torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return model.encode_images(images), model.encode_prompts(PROMPTS[:n])


@pytest.fixture
def toy(tiny_model, monkeypatch):
    """eps_theta = (x_t - alpha_t y) / sigma_t, y shaped like x_0: the loss is (alpha/sigma)^2 (x_0 - y)^2."""

    class Toy(TextToImageModel):
        dtype = torch.float64

        def predict(self, noisy, timesteps, prompt_embeds):
            alpha, sigma = alpha_sigma(self.alphas_cumprod, timesteps, noisy)
            return (noisy - alpha * prompt_embeds.view_as(noisy)) / sigma

    monkeypatch.setattr(module, "max_batch", lambda *_: 64)
    return Toy(tiny_model.pipe, defaults=tiny_model.defaults, name="toy", device=tiny_model.device)


def test_loss_and_gradient_are_those_of_the_toy_denoiser_for_every_noise(toy):
    x0 = torch.randn(2, 4, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.randn(2, 1, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    images = module._Images(toy, x0, [0, 1], batch=4, rows=64)
    noise, t = images.draw()
    images.draw = lambda: (noise, t)
    loss, gradient = images.loss_and_gradient(y)
    weight = (toy.alphas_cumprod.double()[t] / (1 - toy.alphas_cumprod.double()[t])).mean(0)
    gap = x0.flatten(1) - y.flatten(1)
    torch.testing.assert_close(loss, weight * gap.square().mean(1), atol=0, rtol=1e-5)
    torch.testing.assert_close(
        gradient.flatten(1), -2 * weight[:, None] * gap / gap.shape[1], atol=0, rtol=1e-5
    )


def test_the_attack_on_the_toy_finds_the_image(toy):
    x0 = torch.randn(3, 4, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = dori_attack(toy, x0, torch.zeros(3, 1, 16).double(), Attack(steps=500, batch=32), seeds=[0, 1, 2])
    assert (found.embeds.view_as(x0) - x0).square().mean() < 0.01 * x0.square().mean()
    assert found.losses.shape == (3, 500)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_gradient_agrees_with_finite_differences(kind):
    pipe = make_pipeline(kind)
    pipe.unet.double()
    pipe.vae.double()
    model = adapt(pipe)
    latents, y = (x.double() for x in setting(model, 2))
    images = module._Images(model, latents, [0, 1], batch=2, rows=64)
    fixed = images.draw()
    images.draw = lambda: fixed
    _, gradient = images.loss_and_gradient(y)
    direction = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    ahead, behind = (images.loss_and_gradient(y + h * direction)[0] for h in (1e-5, -1e-5))
    torch.testing.assert_close(
        (gradient * direction).sum((1, 2)), (ahead - behind) / 2e-5, rtol=1e-5, atol=1e-9
    )


def test_the_loss_falls_and_the_weights_stay(tiny_model):
    before = weights_hash([tiny_model.unet])
    latents, start = setting(tiny_model)
    found = dori_attack(tiny_model, latents, start, seeds=[0, 1, 2])
    assert weights_hash([tiny_model.unet]) == before
    assert all(p.grad is None and not p.requires_grad for p in tiny_model.unet.parameters())
    images = module._Images(tiny_model, latents, [7, 8, 9], batch=64, rows=512)
    fresh = images.draw()
    images.draw = lambda: fresh  # the same draws, which the attack did not see
    first, last = (images.loss_and_gradient(y)[0].mean() for y in (start, found.embeds))
    assert last < first
    assert not found.failed.any()


def test_no_steps_change_nothing(tiny_model):
    latents, start = setting(tiny_model)
    found = dori_attack(tiny_model, latents, start, Attack(steps=0), seeds=[0, 1, 2])
    assert torch.equal(found.embeds, start)
    assert torch.equal(found.saved[0], start)


def test_two_runs_of_one_seed_are_bit_equal_and_other_seeds_are_not(tiny_model):
    latents, start = setting(tiny_model)
    runs = [
        dori_attack(tiny_model, latents, start, Attack(steps=3, batch=2), seeds=s) for s in ([0, 1, 2],) * 2
    ]
    assert torch.equal(runs[0].embeds, runs[1].embeds)
    other = dori_attack(tiny_model, latents, start, Attack(steps=3, batch=2), seeds=[0, 1, 9])
    assert not torch.equal(other.embeds[2], runs[0].embeds[2])


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_the_result_does_not_depend_on_company_nor_on_memory(tiny_model, monkeypatch, rows):
    latents, start = setting(tiny_model)
    together = dori_attack(tiny_model, latents, start, Attack(steps=5, batch=4), seeds=[0, 1, 2])
    monkeypatch.setattr(module, "max_batch", lambda *_: rows)
    apart = dori_attack(tiny_model, latents[1:], start[1:], Attack(steps=5, batch=4), seeds=[1, 2])
    torch.testing.assert_close(apart.embeds, together.embeds[1:], atol=1e-3, rtol=0)
    torch.testing.assert_close(apart.losses, together.losses[1:], atol=1e-3, rtol=0)


def test_noise_and_timesteps_are_new_at_each_step(tiny_model, monkeypatch):
    seen, draw = [], module._Images.draw

    def noted(self):
        noise, t = draw(self)
        seen.extend(hashlib.sha256(x.contiguous().numpy().tobytes()).hexdigest() for x in noise.flatten(0, 1))
        return noise, t

    monkeypatch.setattr(module._Images, "draw", noted)
    dori_attack(tiny_model, *setting(tiny_model), Attack(steps=4, batch=2), seeds=[0, 1, 2])
    assert len(set(seen)) == 3 * 4 * 2


def test_steps_are_saved_on_the_way_and_the_callback_sees_them(tiny_model):
    latents, start = setting(tiny_model)
    heard = []
    found = dori_attack(
        tiny_model, latents, start, Attack(steps=(0, 2, 4), batch=1), seeds=[0, 1, 2],
        callback=lambda step, loss, y: heard.append((step, len(loss), len(y))),
    )  # fmt: skip
    half = dori_attack(tiny_model, latents, start, Attack(steps=2, batch=1), seeds=[0, 1, 2])
    assert list(found.saved) == [0, 2, 4]
    assert torch.equal(found.saved[2], half.embeds)
    assert torch.equal(found.saved[4], found.embeds)
    assert heard == [(s, 3, 3) for s in (1, 2, 3, 4)]


def test_each_image_is_attacked_under_its_own_units(tiny_model):
    latents, start = setting(tiny_model, 2)
    widths = {name: x.out_features for name, x in tiny_model.value_layers().items()}
    units = [Units.of(dict.fromkeys(widths, chosen), widths) for chosen in ([0, 1], [2, 3, 4])]
    together = dori_attack(tiny_model, latents, start, Attack(steps=3, batch=2), seeds=[0, 1], units=units)
    free = dori_attack(tiny_model, latents, start, Attack(steps=3, batch=2), seeds=[0, 1])
    for i in (0, 1):
        one = slice(i, i + 1)
        alone = dori_attack(
            tiny_model, latents[one], start[one], Attack(steps=3, batch=2), seeds=[i], units=units[i]
        )
        torch.testing.assert_close(together.embeds[i], alone.embeds[0], atol=1e-3, rtol=0)
        assert not torch.allclose(free.embeds[i], alone.embeds[0], atol=1e-3)


def test_an_image_that_fails_leaves_the_others_alone(tiny_model):
    latents, start = setting(tiny_model)
    broken = latents.clone()
    broken[1] = float("nan")
    found = dori_attack(tiny_model, broken, start, Attack(steps=3, batch=2), seeds=[0, 1, 2])
    whole = dori_attack(tiny_model, latents, start, Attack(steps=3, batch=2), seeds=[0, 1, 2])
    assert found.failed.tolist() == [False, True, False]
    torch.testing.assert_close(found.embeds[[0, 2]], whole.embeds[[0, 2]], atol=1e-3, rtol=0)


def test_starts_are_prompts_normal_numbers_or_regular_prompts(tiny_model):
    some = {"prompts": PROMPTS, "seeds": [5, 6, 7]}
    assert torch.equal(initial_embeds(tiny_model, "prompt", **some), tiny_model.encode_prompts(PROMPTS))
    drawn = initial_embeds(tiny_model, "random", **some)
    assert torch.equal(drawn[1], initial_embeds(tiny_model, "random", prompts=["x"], seeds=[6])[0])
    assert drawn.std() == pytest.approx(1, abs=0.1)
    regular = initial_embeds(tiny_model, "regular", **some, regular=["dusk", "noon"])
    assert torch.equal(regular[0], tiny_model.encode_prompts(["noon"])[0])
    between = initial_embeds(tiny_model, "between", **some, regular=["dusk", "noon"])
    torch.testing.assert_close(between, (regular + tiny_model.encode_prompts(PROMPTS)) / 2)
    for init, more in (("regular", {}), ("between", {}), ("guess", {})):
        with pytest.raises(DoriError, match=init):
            initial_embeds(tiny_model, init, **some, **more)


def test_the_batch_follows_the_free_memory(tiny_model, monkeypatch):
    sizes = []
    for free in (10**6, 10**8, 10**15):
        monkeypatch.setattr(module, "free_memory", lambda _, free=free: free)
        sizes.append(max_batch(tiny_model, tiny_model.unconditional))
    assert 1 <= sizes[0] < sizes[1] <= sizes[2] == module.CPU_ROWS


def test_impossible_plans_are_refused(tiny_model):
    latents, start = setting(tiny_model)
    with pytest.raises(DoriError, match="1 seeds"):
        dori_attack(tiny_model, latents, start, seeds=[0])
    with pytest.raises(DoriError, match="12 free tokens"):
        dori_attack(tiny_model, latents, start, Attack(free_tokens=12), seeds=[0, 1, 2])


@pytest.mark.parametrize(
    ("setting", "value"),
    [("init", "guess"), ("steps", ()), ("steps", (-1,)), ("steps", (2.5,)), ("lr", 0.0), ("batch", 0),
     ("free_tokens", 0), ("radius", 0.0), ("radius", float("nan")), ("optimizer", "guess")],
)  # fmt: skip
def test_settings_that_are_none_are_refused_by_name(setting, value):
    with pytest.raises(DoriError, match=r"use|give"):
        Attack(**{setting: value})


def test_optimisers_differ_from_the_first_step_on_or_the_second(tiny_model):
    latents, start = setting(tiny_model)
    found = {
        name: dori_attack(
            tiny_model, latents, start, Attack(steps=2, batch=1, optimizer=name), seeds=[0, 1, 2]
        )
        for name in module.OPTIMIZERS
    }
    ends = [attacked.embeds for attacked in found.values()]
    assert all(not torch.equal(a, b) for k, a in enumerate(ends) for b in ends[:k])
    assert all((end - start).flatten(1).norm(dim=1).min() > 0 for end in ends)


def test_numbers_of_steps_are_ordered_and_distinct():
    assert Attack(steps=[50, 10, 50]) == Attack(steps=(10, 50))
    assert Attack(steps=7).steps == (7,)


def test_only_free_tokens_move_and_they_do(tiny_model):
    latents, start = setting(tiny_model)
    found = dori_attack(tiny_model, latents, start, Attack(steps=5, batch=2, free_tokens=2), seeds=[0, 1, 2])
    moved = (found.embeds - start).abs().amax(2)  # (N, T)
    assert (moved[:, 1:3] > 0).all()
    assert (moved[:, [0, *range(3, 12)]] == 0).all()


def test_free_tokens_are_moved_by_their_own_gradient(tiny_model):
    """Where all but two are fixed, the first step of the two is that of the attack without limits."""
    latents, start = setting(tiny_model)
    limited, free = (
        dori_attack(tiny_model, latents, start, Attack(steps=1, free_tokens=k), seeds=[0, 1, 2]).embeds
        for k in (2, None)
    )
    torch.testing.assert_close(limited[:, 1:3], free[:, 1:3])


def test_a_radius_is_kept_and_reached(tiny_model):
    latents, start = setting(tiny_model)
    plan = Attack(steps=tuple(range(9)), batch=2, radius=1.5)
    found = dori_attack(tiny_model, latents, start, plan, seeds=[0, 1, 2])
    lengths = torch.stack([(y - start).flatten(1).norm(dim=1) for y in found.saved.values()], 1)  # (N, 9)
    assert (lengths <= 1.5 + 1e-4).all()
    torch.testing.assert_close(lengths[:, -1], torch.full((3,), 1.5), atol=1e-3, rtol=0)
    assert (lengths[:, 0] == 0).all()


def test_a_wide_radius_changes_nothing(tiny_model):
    latents, start = setting(tiny_model)
    wide, free = (
        dori_attack(tiny_model, latents, start, Attack(steps=3, batch=2, radius=r), seeds=[0, 1, 2])
        for r in (1e3, None)
    )
    torch.testing.assert_close(wide.embeds, free.embeds, atol=1e-5, rtol=0)


def test_points_outside_the_ball_are_pulled_straight_back():
    y = torch.tensor([[[3.0, 4.0]], [[0.3, 0.4]]])
    torch.testing.assert_close(
        module.within(y, torch.zeros_like(y), 1.0), torch.tensor([[[0.6, 0.8]], [[0.3, 0.4]]])
    )


def test_failed_needs_no_losses():
    assert Attacked(torch.zeros(2, 1, 1), torch.zeros(2, 0), {}).failed.tolist() == [False, False]
