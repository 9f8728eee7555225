"""What the background chapter shows: noising, denoising, guidance, attention and copy scores, drawn live.

Everything here takes seconds on a CPU and is drawn anew in every build; nothing is a measurement.
"""

from collections.abc import Sequence

import kornia.enhance as enhance
import kornia.filters as filters
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dori.benchmark import Benchmark
from dori.hooks import recorded
from dori.metrics.copy import similarity
from dori.study import Study, noise_seed
from dori.testbed.painter import paint

QUICK = 12  # DDIM steps where many images are drawn to be looked at
GUIDANCE = (0.0, 1.0, 3.0, 6.0, 12.0)
PAINTER_SEED = 1  # of the pictures that copies are made of; the testbed's own sets use 101 to 808


def example(study: Study) -> Benchmark:
    """One prompt to explain with: the first regular one, of a benchmark without any the first of all."""
    return (study.regular if len(study.regular) else study.memorized).head(1)


def noising(study: Study, prompts: Benchmark, *, shown: int = 7) -> dict[str, Tensor]:
    """x_t of a training image at `shown` timesteps from 0 to the last: label -> (3, H, W), decoded."""
    model = study.model
    clean = model.encode_images(prompts.images(size=model.defaults.image_size))
    noise = model.initial_latents([noise_seed(study.seed, prompts.ids[0], 0)])
    last = len(model.alphas_cumprod) - 1
    steps = torch.linspace(0, last, shown).round().long()
    return {f"t = {t}": model.decode(model.add_noise(clean, noise, t[None]))[0].cpu() for t in steps}


def denoising_strip(
    study: Study, prompts: Benchmark, *, shown: int = 7, seed: int = 0
) -> dict[str, dict[str, Tensor]]:
    """Sampling of one prompt, row -> step -> (3, H, W): what the network is given, and the image it guesses.

    Both are latents, decoded to be looked at. Steps are counted from 1.
    """
    model, guesses = study.model, []
    embeds = model.encode_prompts(prompts.prompts())
    steps = study.sampling().steps
    with recorded(model.unet, ["conv_in"], inputs=True) as given:
        final = model.sample(
            embeds,
            [noise_seed(study.seed, prompts.ids[0], seed)],
            num_inference_steps=steps,
            callback=lambda _, __, x0: guesses.append(x0),
        )
    numbers = sorted({round((steps - 1) * (k / (shown - 1)) ** 2) for k in range(shown)})  # early ones differ
    rows: dict[str, dict[str, Tensor]] = {"given": {}, "guessed": {}}
    for n in numbers:
        rows["given"][f"step {n + 1}"] = model.decode(given["conv_in"][n][:1])[0].cpu()
        rows["guessed"][f"step {n + 1}"] = model.decode(guesses[n])[0].cpu()
    rows["guessed"][f"step {steps}"] = final[0]
    return rows


def guidance_images(
    study: Study, prompts: Benchmark, scales: Sequence[float] = GUIDANCE
) -> dict[str, Tensor]:
    """The same prompt and noises at each guidance scale: scale -> images (S, 3, H, W)."""
    sampling = study.sampling()
    seeds = [noise_seed(study.seed, prompts.ids[0], k) for k in range(min(4, sampling.seeds))]
    embeds = study.model.encode_prompts(prompts.prompts()).expand(len(seeds), -1, -1)
    return {
        f"{scale:g}": study.model.sample(
            embeds, seeds, guidance_scale=scale, num_inference_steps=min(QUICK, sampling.steps)
        )
        for scale in scales
    }


def attention_maps(study: Study, prompts: Benchmark, *, seed: int = 0) -> dict[str, Tensor]:
    """Where in the image each word of one prompt is read: word -> (H, W) in [0, 1], "image" -> (3, H, W).

    Cross-attention probabilities (Hertz et al. 2022), averaged over heads, steps and the layers of the second
    finest resolution that has them (at the finest, the bundled model reads every word everywhere), on the
    half of guidance's batch that sees the prompt. A layer's map is divided by its mean and each word's map
    is stretched from 0 to 1: maps tell where, not how much.
    """
    model = study.model
    layers = [name for name, _ in model.unet.named_modules() if name.endswith("attn2")]
    parts = [f"{name}.{part}" for name in layers for part in ("to_q", "to_k")]
    with recorded(model.unet, parts, reduce=lambda x: x[-1:]) as found:
        image = model.sample(
            model.encode_prompts(prompts.prompts()),
            [noise_seed(study.seed, prompts.ids[0], seed)],
            num_inference_steps=study.sampling().steps,
        )[0]
    maps = [
        _probabilities(
            torch.cat(found[f"{name}.to_q"]),
            torch.cat(found[f"{name}.to_k"]),
            heads=model.unet.get_submodule(name).heads,
        )
        for name in layers
    ]
    side = sorted({m.shape[-1] for m in maps}, reverse=True)[:2][-1]
    read = torch.stack([m / m.mean((1, 2), keepdim=True) for m in maps if m.shape[-1] == side]).mean(0)
    read = F.interpolate(read[None], size=tuple(image.shape[1:]), mode="bilinear")[0]
    shown = {word: read[positions].mean(0) for word, positions in words(study, prompts.prompts()[0]).items()}
    return {"image": image} | {word: _stretched(m).cpu() for word, m in shown.items()}


def _stretched(values: Tensor) -> Tensor:
    """From least 0 to greatest 1; all 0 where nothing varies."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low).clamp(min=1e-12)


def _probabilities(queries: Tensor, keys: Tensor, *, heads: int) -> Tensor:
    """softmax(q k' / sqrt(d)) over tokens, mean over steps and heads: (tokens, h, w).

    `queries` (steps, places, heads * d), `keys` (steps, tokens, heads * d).
    """
    q, k = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (queries, keys))
    read = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1).mean((0, 1))  # (places, tokens)
    side = int(len(read) ** 0.5)
    return read.T.unflatten(-1, (side, side))


def words(study: Study, prompt: str) -> dict[str, list[int]]:
    """Token positions of each word of a prompt, in order; a word that comes again is counted with the first.

    Special tokens, padding and what the model cuts off are left out.
    """
    tokenizer = study.model.tokenizer
    encoded = tokenizer(prompt, truncation=True, max_length=tokenizer.model_max_length)
    special, found, word, positions = set(tokenizer.all_special_ids), {}, "", []
    for position, token in enumerate(encoded.input_ids):
        if token in special:
            continue
        piece = tokenizer.convert_ids_to_tokens(token)
        word, positions = word + piece.removesuffix("</w>"), [*positions, position]
        if piece.endswith("</w>"):
            found[word] = found.get(word, []) + positions
            word, positions = "", []
    return found | ({word: positions} if word else {})


def copies(study: Study) -> list[dict]:
    """For `plots.image_grid`: a painted picture, changed copies of it, and another one, with copy scores."""
    painted, table = paint(PAINTER_SEED, [0])
    same, _ = paint(PAINTER_SEED, [1], [table.iloc[0].drop("caption").to_dict()])
    original, same = _tensor(painted), _tensor(same)
    images = {
        "blurred": filters.gaussian_blur2d(original, (5, 5), (1.2, 1.2)),
        "recoloured": enhance.adjust_hue(original, 0.3),
        "cropped": _cropped(original, 1 / 16),
        "more so": _cropped(original, 1 / 8),
        "same caption": same,
    }
    stacked = torch.cat(list(images.values())).clamp(0, 1)
    scores = similarity(study.descriptor.embed(stacked), study.descriptor.embed(original))[:, 0].tolist()
    return [
        {
            "prompt": table["caption"][0],
            "images": {"original": original[0]} | dict(zip(images, stacked, strict=True)),
            "scores": dict(zip(images, scores, strict=True)),
        }
    ]


def _cropped(images: Tensor, share: float) -> Tensor:
    """This share of each edge cut away, the rest enlarged to the old size."""
    side = images.shape[-1]
    cut = round(side * share)
    return F.interpolate(images[..., cut : side - cut, cut : side - cut], size=(side, side), mode="bilinear")


def _tensor(painted: np.ndarray) -> Tensor:
    """uint8 (B, H, W, 3) from the painter -> (B, 3, H, W) in [0, 1]."""
    return torch.from_numpy(painted).permute(0, 3, 1, 2).float() / 255
