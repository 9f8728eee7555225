"""The testbed's `AutoencoderKL`: 64x64 pictures to 16x16x4 latents."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import nn

from dori.testbed.canvas import IMAGE_SIZE
from dori.testbed.recipe import Recipe
from dori.training import Fit, Schedule, torch_rng

KL_WEIGHT = (
    1e-6  # as in latent diffusion (Rombach et al. 2022): the prior is only there to keep latents bounded
)
EDGE_WEIGHT = 1.0  # stands in for the perceptual loss, for which no pretrained network is at hand


def build(recipe: Recipe) -> AutoencoderKL:
    """An untrained autoencoder with one down-sampling per channel step."""
    levels = len(recipe.vae_channels)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        sample_size=IMAGE_SIZE,
        layers_per_block=1,
        norm_num_groups=8,
        block_out_channels=recipe.vae_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
    )


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """Uint8 `(B, H, W, 3)` to float `(B, 3, H, W)` in [-1, 1], the range of the autoencoder."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Absolute error of pixels and of horizontal and vertical differences."""
    error = output - target
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + EDGE_WEIGHT * edges


def train(images: np.ndarray, recipe: Recipe, run_dir: Path, device: str = "cpu") -> AutoencoderKL:
    """Train on `images` (uint8 `(N, 64, 64, 3)`), then fix the scaling factor so that latents have unit
    deviation. What is returned is on the CPU."""
    torch.manual_seed(recipe.seed)
    vae = build(recipe).to(device, memory_format=torch.channels_last)

    def loss(step: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        batch = images[rng.integers(len(images), size=recipe.vae_batch)]
        batch = np.where(rng.random((len(batch), 1, 1, 1)) < 0.5, batch, batch[:, :, ::-1])
        target = to_tensor(batch).to(device, memory_format=torch.channels_last)
        posterior = vae.encode(target).latent_dist
        output = vae.decode(posterior.sample(torch_rng(rng))).sample
        reconstruction = reconstruction_loss(output, target)
        return reconstruction + KL_WEIGHT * posterior.kl().mean(), {"reconstruction": reconstruction.item()}

    fit = Fit(
        "vae",
        vae,
        loss,
        Schedule(recipe.vae_steps, 2e-3, decay=0.5),
        run_dir,
        recipe.seed,
        ema_decay=0.995,
        weight_decay=0.0,
    )
    vae = fit.run().cpu()
    vae.register_to_config(scaling_factor=float(1 / encode(vae, images[:512]).std()))
    return vae


def polish(
    vae: AutoencoderKL, images: np.ndarray, recipe: Recipe, run_dir: Path, device: str = "cpu"
) -> AutoencoderKL:
    """Train the decoder alone for longer.

    Latents stay as they are, so the denoisers need not wait for it.
    """
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    vae.to(device, memory_format=torch.channels_last)
    decoder = nn.ModuleList([vae.post_quant_conv, vae.decoder])

    def loss(step: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        target = to_tensor(images[rng.integers(len(images), size=recipe.vae_batch)])
        target = target.to(device, memory_format=torch.channels_last)
        with torch.no_grad():
            latents = vae.encode(target).latent_dist.mean
            noise = torch.randn(latents.shape, generator=torch_rng(rng)).to(device)
            latents = latents + recipe.decoder_noise * noise
        return reconstruction_loss(vae.decode(latents).sample, target), {}

    Fit(
        "decoder",
        decoder,
        loss,
        Schedule(recipe.decoder_steps, 1.5e-3, decay=0.7),
        run_dir,
        recipe.seed,
        ema_decay=0.995,
        weight_decay=0.0,
    ).run()
    return vae.cpu().requires_grad_(True).eval()


@torch.no_grad()
def encode(vae: AutoencoderKL, images: np.ndarray, batch: int = 64) -> torch.Tensor:
    """Posterior means of uint8 `(N, 64, 64, 3)`, unscaled: `(N, 4, 16, 16)`."""
    chunks = [
        vae.encode(to_tensor(images[i : i + batch])).latent_dist.mean for i in range(0, len(images), batch)
    ]
    return torch.cat(chunks)
