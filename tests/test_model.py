"""The adapter and the arithmetic under it: oracles of the protocol (methods 1) and determinism."""

import pytest
import torch
from diffusers import DDIMScheduler

from dori.sampling import alpha_sigma, ddim, ddim_scheduler, epsilon_from_velocity, guided, velocity

ABAR = {0: 0.999150, 1: 0.998296, 500: 0.276333, 961: 0.007282, 981: 0.005776, 999: 0.004660}
PROMPTS = ["red boat", "blue house", "dawn"]


def rand(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_schedule_has_the_published_alpha_bars(tiny_model):
    for t, abar in ABAR.items():
        assert tiny_model.alphas_cumprod[t].item() == pytest.approx(abar, abs=1e-6)


def test_fifty_steps_visit_981_to_1(tiny_model):
    scheduler = tiny_model.new_scheduler()
    scheduler.set_timesteps(50)
    assert scheduler.timesteps.tolist() == list(range(981, 0, -20))


@pytest.mark.parametrize("steps", [1, 7, 50, 500])
def test_ddim_with_the_true_noise_ends_at_abar_0(tiny_model, steps):
    x0, eps = rand(2, 4, 8, 8).double(), rand(2, 4, 8, 8, seed=1).double()
    scheduler = tiny_model.new_scheduler()
    scheduler.set_timesteps(steps)
    abar = tiny_model.alphas_cumprod
    start = abar[scheduler.timesteps[0]].sqrt() * x0 + (1 - abar[scheduler.timesteps[0]]).sqrt() * eps
    end = ddim(lambda x, t: eps, start, scheduler, num_inference_steps=steps)
    torch.testing.assert_close(end, abar[0].sqrt() * x0 + (1 - abar[0]).sqrt() * eps, atol=1e-5, rtol=0)


def test_v_to_epsilon_round_trip(tiny_v_model):
    x0, eps, t = rand(3, 4, 8, 8), rand(3, 4, 8, 8, seed=1), torch.tensor([1, 500, 981])
    alpha, sigma = alpha_sigma(tiny_v_model.alphas_cumprod, t, x0)
    noisy = tiny_v_model.add_noise(x0, eps, t)
    v = velocity(x0, eps, alpha, sigma)
    back = epsilon_from_velocity(v, noisy, alpha, sigma)
    assert (back - eps).abs().max() < 1e-5
    assert (alpha * back - sigma * (alpha * noisy - sigma * v) - v).abs().max() < 1e-5


def test_noise_and_targets_are_those_of_diffusers(tiny_model, tiny_v_model):
    x0, eps, t = rand(3, 4, 8, 8), rand(3, 4, 8, 8, seed=1), torch.tensor([1, 500, 981])
    theirs = DDIMScheduler.from_config(tiny_v_model.pipe.scheduler.config)
    torch.testing.assert_close(tiny_v_model.add_noise(x0, eps, t), theirs.add_noise(x0, eps, t))
    torch.testing.assert_close(tiny_v_model.target(x0, eps, t), theirs.get_velocity(x0, eps, t))
    assert tiny_model.target(x0, eps, t) is eps


def test_guidance_identities():
    empty, cond = rand(2, 4, 8, 8), rand(2, 4, 8, 8, seed=1)
    torch.testing.assert_close(guided(empty, cond, 1.0), cond)
    torch.testing.assert_close(guided(cond, cond, 3.0), guided(cond, cond, 9.0))


def test_guidance_one_is_the_conditional_model(tiny_model):
    """The cheap path (no second half) gives what the formula gives."""
    embeds = tiny_model.encode_prompts(PROMPTS)
    cheap = tiny_model.sample(embeds, [1, 2, 3], guidance_scale=1)
    formula = tiny_model.sample(embeds, [1, 2, 3], guidance_scale=1 + 1e-9)
    assert (cheap - formula).abs().max() < 1e-4


@pytest.mark.parametrize("model_name", ["tiny_model", "tiny_v_model"])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_sampling_agrees_with_the_diffusers_pipeline(model_name, guidance, request):
    model = request.getfixturevalue(model_name)
    old, model.pipe.scheduler = model.pipe.scheduler, ddim_scheduler(model.pipe.scheduler.config)
    try:
        theirs = model.pipe(
            PROMPTS, latents=model.initial_latents([1, 2, 3]), guidance_scale=guidance, num_inference_steps=7,
            height=16, width=16, output_type="pt",
        ).images  # fmt: skip
    finally:
        model.pipe.scheduler = old
    ours = model.sample(
        model.encode_prompts(PROMPTS), [1, 2, 3], guidance_scale=guidance, num_inference_steps=7
    )
    assert (ours - theirs).abs().max() < 1e-4


def test_same_seed_and_batch_gives_the_same_bits(tiny_model):
    embeds = tiny_model.encode_prompts(PROMPTS)
    assert torch.equal(tiny_model.sample(embeds, [1, 2, 3]), tiny_model.sample(embeds, [1, 2, 3]))


def test_another_batch_size_gives_the_same_images(tiny_model):
    embeds = tiny_model.encode_prompts(PROMPTS)
    whole, single = (tiny_model.sample(embeds, [1, 2, 3], batch_size=size) for size in (3, 1))
    assert (whole - single).abs().max() < 1e-3


def test_noise_of_an_image_depends_on_its_seed_alone(tiny_model):
    assert torch.equal(tiny_model.initial_latents([7, 8, 9])[2], tiny_model.initial_latents([9])[0])


def test_latents_of_an_image_are_the_scaled_posterior_mean(tiny_model):
    images = torch.rand(2, 3, 16, 16)
    mean = tiny_model.vae.encode(images * 2 - 1).latent_dist.mean
    torch.testing.assert_close(tiny_model.encode_images(images), 0.5 * mean)
    assert tiny_model.decode(tiny_model.encode_images(images)).shape == images.shape


def test_guidance_difference_is_zero_for_the_empty_prompt(tiny_model, tiny_v_model):
    for model in (tiny_model, tiny_v_model):
        latents, t = model.initial_latents([1, 2]), torch.tensor([981, 961])
        empty = model.guidance_difference(latents, t, model.encode_prompts(["", ""]))
        assert empty.abs().max() < 1e-5
        assert model.guidance_difference(latents, t, model.encode_prompts(PROMPTS[:2])).abs().max() > 1e-5


def test_the_papers_layers_are_found_in_forward_order(tiny_model):
    values, ffn = tiny_model.value_layers(), tiny_model.ffn_layers()
    assert len(values) == 7
    assert len(ffn) == 16
    assert next(iter(values)) == "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v"
    assert list(values)[-1] == "mid_block.attentions.0.transformer_blocks.0.attn2.to_v"
    assert [n.split("_")[0] for n in ffn] == ["down"] * 6 + ["mid"] + ["up"] * 9
    everywhere = list(tiny_model.value_layers(up=True))
    assert everywhere[:7] == list(values)
    assert [n.split("_")[0] for n in everywhere[7:]] == ["up"] * 9


def test_weights_are_frozen_and_the_embedding_is_not(tiny_model):
    embeds = tiny_model.encode_prompts(["red"]).clone().requires_grad_()
    tiny_model.predict(tiny_model.initial_latents([0]), torch.tensor([500]), embeds).sum().backward()
    assert embeds.grad.abs().sum() > 0
    assert all(p.grad is None for p in tiny_model.unet.parameters())


def test_a_saved_directory_loads_as_the_same_model(tiny_model, tiny_dir):
    from dori.model import TextToImageModel

    loaded = TextToImageModel.load(tiny_dir, device="cpu")
    assert loaded.name == "tiny"
    assert loaded.defaults == tiny_model.defaults
    assert loaded.fingerprint == tiny_model.fingerprint
