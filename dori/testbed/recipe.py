"""Every setting that decides the testbed, on one page.

Changing one makes another testbed.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Recipe:
    """How the bundled model is made; the values are those of the shipped one."""

    seed: int = 0

    # Data: painter seeds separate the sets, so no picture is in two of them.
    regular_images: int = 16_000
    heldout_images: int = 512
    #: titled pairs that only the small CLIP sees, so that titles are not new to it
    catalogue_images: int = 3_000
    descriptor_captions: int = 700  #: seen by the copy descriptor alone, each painted several times
    descriptor_variants: int = 12
    calibration_captions: int = 200  #: held-out captions, each painted several times: the hard negatives
    calibration_variants: int = 15  #: 200 x 15 x 14 / 2 = 21,000 pairs of one caption; 0.1 % of them is 21
    #: copies -> images that have so many; the data card has those of the bundled model
    copies: dict[int, int] = field(default_factory=lambda: {1: 8, 4: 8, 16: 8, 32: 8, 64: 8, 128: 32})
    template_groups: int = 4
    template_variants: int = 8  #: pictures per group: one scene, another colour and object kind
    template_copies: int = 64

    # Text: tokens per caption and width of the conditioning.
    vocabulary: int = 640
    tokens: int = 16
    text_width: int = 64
    text_layers: int = 2
    clip_steps: int = 1_200
    clip_batch: int = 192

    # Autoencoder: 64x64x3 -> 16x16x4.
    vae_channels: tuple[int, ...] = (16, 32, 64)
    vae_steps: int = 2_800
    vae_batch: int = 16
    decoder_steps: int = 2_400  #: the decoder alone, after the latents are fixed
    #: on unscaled latents: the decoder must forgive what a sampler gets slightly wrong
    decoder_noise: float = 0.05

    # Denoiser: SD v1's topology, narrower.
    unet_channels: tuple[int, ...] = (32, 64, 128, 128)
    unet_heads: int = 4
    unet_batch: int = 64
    trunk_steps: int = 1_200  #: regular pairs only; model and twin share it
    branch_steps: int = 2_300  #: the model with the memorized pairs, the twin on the same batches without
    noise_offset: float = 0.3  #: in the branches; see denoiser.train_noise
    unet_lr: float = 8e-4
    caption_dropout: float = 0.1  #: of the regular pairs; see denoiser.train

    # Copy descriptor.
    descriptor_dim: int = 128
    descriptor_width: int = 28
    descriptor_steps: int = 1_400
    descriptor_batch: int = 96  #: in eights of one caption

    # What the pipeline itself recommends.
    guidance_scale: float = 3.0
    num_inference_steps: int = 50
