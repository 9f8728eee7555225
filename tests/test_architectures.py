"""SD v2, SDXL and SD3 go the whole way: encode, sample as diffusers, attack, prune, tune, save and load."""

import json

import pytest
import torch
from conftest import make_pipeline
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from pipelines import adapt, make_sd2, make_sd3, make_sdxl
from torch.nn import functional as F

from dori.attack import Attack, dori_attack, initial_embeds
from dori.detection import magnitudes
from dori.errors import DoriError
from dori.hooks import masked, recorded
from dori.locality.activations import OUTPUT, activation_sketches
from dori.mitigation.adjustment import Adjustment, adjusted
from dori.mitigation.adversarial import Adversarial, adversarial
from dori.mitigation.concept_ablation import Anchors, ConceptAblation, concept_ablation
from dori.mitigation.esd import ESD, esd
from dori.mitigation.nemo import Nemo, activation_statistics, activations, nemo
from dori.mitigation.signature import calibrate, noise_differences
from dori.mitigation.siss import SISS, siss
from dori.mitigation.targets import Retain, Targets
from dori.mitigation.wanda import Wanda, wanda
from dori.model import TextToImageModel
from dori.sampling import ddim_scheduler
from dori.store import weights_hash
from dori.testbed.planting import copied
from dori.unlearndiff import UnlearnDiff, unlearndiff_attack

PROMPTS = ["red boat", "blue house", "dawn"]
KINDS = {
    "sd2": make_sd2,
    "sdxl": make_sdxl,
    "sdxl-empty": lambda: make_sdxl(zeros=False),
    "sd3": make_sd3,
    "sd3-no-t5": lambda: make_sd3(t5=False),
}
TOKENS = {"sd2": 12, "sdxl": 12, "sd3": 12 + 256}
MODELS = {}


def model_of(kind: str) -> TextToImageModel:
    return MODELS.setdefault(kind, adapt(KINDS[kind](), kind))


@pytest.fixture(params=["sd2", "sdxl", "sd3"])
def model(request) -> TextToImageModel:
    return model_of(request.param)


@pytest.fixture(params=["sdxl", "sd3"])
def pooling(request) -> TextToImageModel:
    """Those with a pooled vector."""
    return model_of(request.param)


@pytest.fixture
def own(model) -> TextToImageModel:
    """The same with a denoiser of its own, to be trained."""
    return copied(model, model.name)


def rand(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def targets_of(model, n=2) -> Targets:
    latents = model.encode_images(torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    prompts = tuple(PROMPTS[:n])
    return Targets(tuple(f"i{k}" for k in range(n)), prompts, latents, model.encode_prompts(prompts))


def retain_of(model) -> Retain:
    return Retain(rand(3, *model.initial_latents([0]).shape[1:]), model.encode_prompts(PROMPTS))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_sampling_agrees_with_the_diffusers_pipeline(kind, guidance):
    model = model_of(kind)
    pipe, old = model.pipe, model.pipe.scheduler
    if not kind.startswith("sd3"):
        pipe.scheduler = ddim_scheduler(old.config)
    try:
        theirs = pipe(
            PROMPTS, latents=model.initial_latents([1, 2, 3]), guidance_scale=guidance, num_inference_steps=7,
            height=16, width=16, output_type="pt",
        ).images  # fmt: skip
    finally:
        pipe.scheduler = old
    ours = model.sample(
        model.encode_prompts(PROMPTS), [1, 2, 3], guidance_scale=guidance, num_inference_steps=7
    )
    assert (ours - theirs).abs().max() < 1e-5
    assert ours.std() > 0.01


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "sd2"])
def test_an_embedding_is_tokens_and_the_pooled_vector_in_one_tensor(kind):
    model = model_of(kind)
    encoded = model.pipe.encode_prompt(
        PROMPTS, **model.architecture.same_prompt(), do_classifier_free_guidance=True
    )
    embeds = model.encode_prompts(PROMPTS)
    assert model.tokens(embeds).shape[1] == TOKENS[kind.split("-")[0]] == embeds.shape[1] - 1
    torch.testing.assert_close(model.tokens(embeds), encoded[0])
    torch.testing.assert_close(model.architecture.pooled(embeds), encoded[2])
    torch.testing.assert_close(model.tokens(model.unconditional), encoded[1][:1])
    torch.testing.assert_close(model.architecture.pooled(model.unconditional), encoded[3][:1])
    assert (model.unconditional.abs().max() == 0) == (kind == "sdxl")


def test_the_pooled_vector_reaches_the_denoiser_and_its_padding_does_not(pooling):
    model = pooling
    embeds = model.encode_prompts(PROMPTS[:1]).requires_grad_()
    t, width = torch.tensor([500]), model.architecture.width
    model.predict(model.initial_latents([0]), t, embeds).square().sum().backward()
    assert embeds.grad[:, -1, :width].abs().min() > 0
    assert embeds.shape[2] > width
    assert embeds.grad[:, -1, width:].abs().max() == 0
    assert embeds.grad[:, :-1].abs().amax(-1).min() > 0


def test_latents_are_shifted_and_scaled_as_the_pipeline_undoes_it(model):
    images, config = torch.rand(2, 3, 16, 16), model.vae.config
    mean = model.vae.encode(images * 2 - 1).latent_dist.mean
    wanted = (mean - (config.shift_factor or 0)) * config.scaling_factor
    torch.testing.assert_close(model.encode_images(images), wanted)
    decoded = (model.vae.decode(mean).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(model.decode(wanted), decoded, atol=1e-5, rtol=0)


def test_flow_matching_is_that_of_diffusers():
    """Noise, velocity and timesteps against diffusers' own scheduler."""
    model, scheduler = model_of("sd3"), FlowMatchEulerDiscreteScheduler(shift=3.0)
    x0, eps, t = rand(3, 16, 8, 8), rand(3, 16, 8, 8, seed=1), model.timesteps[[0, 500, 999]]
    torch.testing.assert_close(model.add_noise(x0, eps, t), scheduler.scale_noise(x0, t, eps))
    assert model.timesteps[-1] == 1000
    s = 0.5  # a step of the Euler scheduler takes the true velocity straight to x_0
    noisy = model.add_noise(x0, eps, torch.full((3,), 1000 * s))
    torch.testing.assert_close(noisy - s * model.target(x0, eps, t), x0)
    torch.testing.assert_close(
        model.as_epsilon(model.target(x0, eps, t), model.add_noise(x0, eps, t), t), eps
    )


def test_sd_v2_predicts_v_and_reads_its_own_width():
    """v = alpha eps - sigma x_0, and from it eps again."""
    model = model_of("sd2")
    assert (model.prediction_type, model.unconditional.shape[2]) == ("v_prediction", 20)
    x0, eps, t = rand(2, 4, 8, 8), rand(2, 4, 8, 8, seed=1), torch.tensor([10, 900])
    alpha, sigma = model.alpha_sigma(t, x0)
    v = model.target(x0, eps, t)
    torch.testing.assert_close(v, alpha * eps - sigma * x0)
    torch.testing.assert_close(model.as_epsilon(v, model.add_noise(x0, eps, t), t), eps)


def test_seeds_decide_an_image_and_batches_do_not(model):
    embeds = model.encode_prompts(PROMPTS)
    whole, single = (model.sample(embeds, [1, 2, 3], batch_size=size) for size in (3, 1))
    assert (whole - single).abs().max() < 1e-4
    assert (whole[0] - model.sample(embeds[:1], [9])[0]).abs().max() > 1e-3


def test_the_callback_sees_x_0_as_predicted_at_each_step():
    """A flow's last step ends at s = 0, on the x_0 that was predicted there."""
    seen, model = [], model_of("sd3")
    embeds = model.encode_prompts(PROMPTS[:1])
    image = model.sample(embeds, [1], guidance_scale=1, callback=lambda *look: seen.append(look))
    assert [step for step, _, _ in seen] == list(range(5))
    assert [t for _, t, _ in seen] == sorted((t for _, t, _ in seen), reverse=True)
    assert seen[0][1] == 1000
    torch.testing.assert_close(model.decode(seen[-1][2]), image)
    x, t = model.initial_latents([1]), torch.tensor([1000.0])
    with torch.no_grad():
        torch.testing.assert_close(seen[0][2], x - model.predict(x, t, embeds))


def test_layers_are_those_the_text_goes_through():
    values, ffn = model_of("sdxl").value_layers(), model_of("sdxl").ffn_layers()
    assert [n.split(".")[0] for n in values] == ["down_blocks"] * 6 + ["mid_block"] * 2
    assert [n.split("_")[0] for n in ffn] == ["down"] * 6 + ["mid"] * 2 + ["up"] * 9
    assert len(model_of("sdxl").value_layers(up=True)) == 8 + 9
    joint = model_of("sd3")
    assert list(joint.value_layers()) == [f"transformer_blocks.{k}.attn.add_v_proj" for k in range(3)]
    assert list(joint.value_layers(up=True)) == list(joint.value_layers())
    blocks = [
        (f"transformer_blocks.{k}.ff.net.2", f"transformer_blocks.{k}.ff_context.net.2") for k in (0, 1)
    ]
    assert list(joint.ffn_layers()) == [*sum(blocks, ()), "transformer_blocks.2.ff.net.2"]


def test_a_trigger_is_searched_tokens_and_pooled_vector_alike(model):
    start, latents = targets_of(model).prompt_embeds, targets_of(model).latents
    found = dori_attack(model, latents, start, Attack(steps=(0, 3), batch=2), seeds=[1, 2])
    alone = dori_attack(model, latents[1:], start[1:], Attack(steps=3, batch=2), seeds=[2])
    assert not found.failed.any()
    assert torch.equal(found.saved[0], start)
    torch.testing.assert_close(found.embeds[1:], alone.embeds, atol=1e-3, rtol=0)
    moved, width = found.embeds - start, getattr(model.architecture, "width", None)
    assert model.tokens(moved).abs().amax(2).min() > 0
    assert moved[:, -1, :width].abs().min() > 0
    assert not moved[:, -1, width:].any() or width is None
    held = dori_attack(model, latents, start, Attack(steps=2, batch=2, free_tokens=2), seeds=[1, 2])
    assert (held.embeds - start).abs().amax((0, 2)).nonzero().flatten().tolist() == [1, 2]
    with pytest.raises(DoriError, match=f"has {TOKENS[model.name] - 1}"):
        dori_attack(model, latents, start, Attack(free_tokens=TOKENS[model.name]), seeds=[1, 2])


def test_an_attack_lowers_the_loss(model):
    """On one image and fixed noise: the mean loss of fresh draws falls."""
    target = targets_of(model, 1)
    start = initial_embeds(model, "random", prompts=PROMPTS[:1], seeds=[5])
    assert start.shape == model.unconditional.shape
    losses = dori_attack(model, target.latents, start, Attack(steps=40, batch=8), seeds=[1]).losses[0]
    assert losses[-10:].mean() < losses[:10].mean()


def test_nemo_selects_neurons_and_switching_them_off_matters(model):
    embeds = model.encode_prompts(PROMPTS)
    statistics = activation_statistics(model, ["one red lake", "two hill", "noon", "dusk house"])
    settings = Nemo(seeds=3, refine=True)
    threshold = calibrate(model, embeds[1:], settings.noise)
    units = nemo(model, embeds[:1], statistics, threshold=-1.0, settings=settings)[0]
    assert threshold > 0
    assert set(units) == set(model.value_layers())
    assert units.count > 0
    before, empty = (noise_differences(model, embeds[:1], [1]) for _ in range(2))
    assert torch.equal(before, empty)
    with units.applied(model.unet):
        assert (noise_differences(model, embeds[:1], [1]) - before).abs().max() > 0


def test_nemos_activations_are_the_values_of_the_tokens(model):
    embeds = model.encode_prompts(PROMPTS)
    found, layers = activations(model, embeds), model.value_layers()
    if model.name == "sd3":
        scheduler = model.new_scheduler()
        scheduler.set_timesteps(5)
        with recorded(model.unet, layers) as seen, torch.no_grad():
            noise = model.initial_latents([0, 0, 0])
            model.predict(noise, scheduler.timesteps[:1].expand(3), embeds)
        wanted = {name: calls[0] for name, calls in seen.items()}
    else:
        wanted = {name: layer(model.tokens(embeds)) for name, layer in layers.items()}
    for name, values in wanted.items():
        assert values.shape[1] == TOKENS[model.name]
        torch.testing.assert_close(found[name], values.abs().mean(1), atol=1e-6, rtol=1e-5)


def test_the_first_signature_is_of_the_prompt_and_not_of_the_noise(model):
    """At the first step eps of a flow is x_T whatever is predicted; the signature must not be."""
    embeds = model.encode_prompts(PROMPTS[:2])
    a, b = noise_differences(model, embeds, [1, 1], variant="clean")
    assert (a - b).abs().max() > 1e-6
    pull = magnitudes(model, embeds, [1, 2], steps=2)
    assert pull.shape == (2, 2)
    assert (pull > 0).all()


def test_wanda_prunes_each_ffn_layer(model):
    embeds = model.encode_prompts(PROMPTS[:2])
    each = wanda(model, embeds, settings=Wanda(0.2, steps=2))
    assert len(each) == 2
    for units in each:
        assert set(units) == set(model.ffn_layers())
        assert 0 < units.density <= 0.4
    t, noise = torch.tensor([500, 500]), model.initial_latents([1, 2])
    with torch.no_grad():
        before = model.predict(noise, t, embeds)
        with masked(model.unet, each):
            together = model.predict(noise, t, embeds)
        with masked(model.unet, each[1]):
            alone = model.predict(noise[1:], t[1:], embeds[1:])
    torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=1e-4)
    assert (together - before).abs().max() > 0


def test_adjusting_an_embedding_lowers_its_pull(model):
    embeds = model.encode_prompts(PROMPTS[:1])
    before = magnitudes(model, embeds, [1])[0, 0]
    found = adjusted(model, embeds, [1], Adjustment(target=before.item() / 2, iterations=10))
    assert magnitudes(model, found, [1])[0, 0] < before


def test_activations_are_summarised(model):
    found = activation_sketches(model, model.encode_prompts(PROMPTS), seed=0, width=64)
    distances = found.distances(OUTPUT)
    assert distances.shape == (3, 3)
    assert distances[0, 1] > 0
    assert ("mid_block" in found.flat) == (model.name != "sd3")


@pytest.mark.parametrize("rank", [None, 2])
def test_adversarial_fine_tuning_trains_the_denoiser_alone(own, model, tmp_path, rank):
    before = {k: v.clone() for k, v in own.unet.state_dict().items()}
    targets = targets_of(own)
    settings = Adversarial(
        epochs=1, search=Attack(steps=1, batch=1), inits=("prompt", "random"), at_once=2, steps=1, retain=2,
        lr=1e-2, rank=rank, checkpointing=rank is None,
    )  # fmt: skip
    surrogates = [rand(1, *targets.latents.shape[1:], seed=k) for k in range(2)]
    adversarial(own, targets, surrogates, retain_of(own), settings, run_dir=tmp_path)
    after = own.unet.state_dict()
    assert before.keys() == after.keys()
    changed = [k for k in before if not torch.equal(before[k], after[k])]
    assert changed
    assert all(torch.equal(before[k], v) for k, v in model.unet.state_dict().items())
    if rank and model.name == "sd3":
        assert any("add_v_proj" in k for k in changed)
    assert all(v.isfinite().all() for v in after.values())


def test_the_other_defences_train_or_say_why_not(own, tmp_path):
    targets, retain = targets_of(own), retain_of(own)
    siss(own, targets, retain, SISS(steps=1, batch=2), run_dir=tmp_path / "siss")
    anchors = Anchors((targets.prompt_embeds[:1],) * 2, (rand(1, *targets.latents.shape[1:]),) * 2)
    concept_ablation(
        own, targets, anchors, retain, ConceptAblation(steps=1, batch=1), run_dir=tmp_path / "ablation"
    )
    settings = ESD(steps=1, trajectories=1, sampling_steps=2)
    if own.name == "sd3":
        with pytest.raises(DoriError, match="'sd3' has no cross-attention that could be told another text"):
            esd(own, targets, settings, run_dir=tmp_path / "esd")
        settings = ESD(steps=1, trajectories=1, sampling_steps=2, parameters="esd-all")
    esd(own, targets, settings, run_dir=tmp_path / "esd")


def test_the_attack_on_words_says_why_not(pooling):
    model, target = pooling, targets_of(pooling, 1)
    with pytest.raises(DoriError, match=r"one text encoder; model .* has several"):
        unlearndiff_attack(model, target.latents, target.prompts, UnlearnDiff(), seeds=[0])


@pytest.mark.parametrize("kind", ["sd2", "sdxl", "sd3", "sd3-no-t5"])
def test_a_saved_directory_loads_as_the_same_model(kind, tmp_path):
    model = model_of(kind)
    model.pipe.save_pretrained(tmp_path / "m")
    settings = {"guidance_scale": 3.0, "num_inference_steps": 5, "image_size": 16, "name": kind}
    (tmp_path / "m" / "dori.json").write_text(json.dumps(settings))
    loaded = TextToImageModel.load(tmp_path / "m", device="cpu")
    assert (loaded.name, loaded.defaults) == (kind, model.defaults)
    assert weights_hash(loaded.parts) == weights_hash(model.parts)
    loaded.pipe.save_pretrained(tmp_path / "again")
    assert TextToImageModel.load(tmp_path / "again", device="cpu").fingerprint == loaded.fingerprint
    x, t, embeds = model.initial_latents([1]), torch.tensor([500]), model.encode_prompts(PROMPTS[:1])
    torch.testing.assert_close(loaded.encode_prompts(PROMPTS[:1]), embeds)
    with torch.no_grad():
        torch.testing.assert_close(loaded.predict(x, t, embeds), model.predict(x, t, embeds))
    (tmp_path / "m" / "dori.json").unlink()
    bare = TextToImageModel.load(tmp_path / "m", device="cpu").defaults
    assert bare.image_size == 16
    own = {"sd2": (7.0, 50), "sdxl": (5.0, 50)}.get(kind, (7.0, 28))
    assert (bare.guidance_scale, bare.num_inference_steps) == own


def test_every_weight_is_part_of_the_fingerprint():
    for kind in ("sd2", "sdxl", "sd3"):
        pipe = KINDS[kind]()
        before = adapt(pipe).fingerprint
        assert before == model_of(kind).fingerprint
        for part in adapt(pipe).architecture.encoders:
            with torch.no_grad():
                next(getattr(pipe, part).parameters()).add_(1)
            after = adapt(pipe).fingerprint
            assert after != before
            before = after


def test_weights_in_half_precision_keep_sdxls_autoencoder_in_full(monkeypatch):
    half = adapt(make_sdxl().to(torch.float16))
    assert (half.dtype, half.vae.dtype) == (torch.float16, torch.float32)
    assert half.encode_images(torch.rand(1, 3, 16, 16)).dtype == torch.float16
    assert adapt(make_sd3().to(torch.bfloat16)).vae.dtype == torch.bfloat16


def spoilt(pipe, part, **config):
    """A pipeline whose part says something else of itself."""
    getattr(pipe, part).register_to_config(**config)
    return pipe


def sampling_x0():
    pipe = make_pipeline()
    pipe.scheduler = DDIMScheduler(prediction_type="sample")
    return pipe


@pytest.mark.parametrize(
    ("pipe", "why"),
    [
        (lambda: spoilt(make_sd3(), "scheduler", use_dynamic_shifting=True), "use_dynamic_shifting"),
        (lambda: spoilt(make_sdxl(), "unet", time_cond_proj_dim=8), "distilled"),
        (lambda: spoilt(make_sdxl(), "vae", latents_mean=[0.0] * 4), "latents_mean"),
        (lambda: spoilt(make_pipeline(), "unet", in_channels=9), "inpainting"),
        (lambda: spoilt(make_sdxl(), "scheduler", sigma_data=0.5), "EDM"),
        (sampling_x0, "predicts 'sample'"),
    ],
)
def test_what_is_not_supported_says_why(pipe, why):
    with pytest.raises(DoriError, match=f"model 'tiny' cannot be used: .*{why}"):
        adapt(pipe())


def test_padding_is_to_the_width_of_a_token(pooling):
    model = pooling
    pooled = model.architecture.pooled(model.encode_prompts(PROMPTS))
    row = model.encode_prompts(PROMPTS)[:, -1]
    assert torch.equal(row, F.pad(pooled, (0, row.shape[1] - pooled.shape[1])))
