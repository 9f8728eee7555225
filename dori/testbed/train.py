"""Make the whole testbed: `dori testbed train`.

Every part resumes from its checkpoint and is skipped when done.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPModel, CLIPTokenizer

from dori.errors import DoriError
from dori.metrics.descriptor_net import build_descriptor_net
from dori.testbed import autoencoder, dataset, denoiser, descriptor, text
from dori.testbed.recipe import Recipe

PARTS = ("tokenizer", "vae", "decoder", "clip", "descriptor", "trunk", "model", "twin")


@dataclass
class Workshop:
    """The parts of the testbed, each made once under `run_dir` from the parts it needs."""

    run_dir: Path
    recipe: Recipe = field(default_factory=Recipe)
    device: str = "cpu"

    def make(self, part: str) -> None:
        """Make one part and what it needs.

        Raises `DoriError` for an unknown part.
        """
        if part not in PARTS:
            raise DoriError(f"unknown part '{part}'; the parts are {', '.join(PARTS)}")
        getattr(self, part)

    def _pretrained(self, name: str, kind: type, train) -> nn.Module:
        path = self.run_dir / name
        if not (path / "config.json").exists():
            train().save_pretrained(path)
        return kind.from_pretrained(path).eval()

    @cached_property
    def regular(self) -> tuple[np.ndarray, pd.DataFrame]:
        return dataset.training_images(self.recipe.regular_images)

    @cached_property
    def memorized(self) -> tuple[np.ndarray, pd.DataFrame]:
        return dataset.memorized(self.recipe)

    @cached_property
    def catalogue(self) -> tuple[np.ndarray, list[str]]:
        return dataset.catalogue(self.recipe)

    @cached_property
    def tokenizer(self) -> CLIPTokenizer:
        path = self.run_dir / "tokenizer"
        if not (path / "tokenizer_config.json").exists():
            captions = list(self.regular[1]["caption"]) + 2 * self.catalogue[1]
            text.train_tokenizer(captions, self.recipe).save_pretrained(path)
        return CLIPTokenizer.from_pretrained(path)

    @cached_property
    def vae(self) -> AutoencoderKL:
        return self._pretrained(
            "vae",
            AutoencoderKL,
            lambda: autoencoder.train(self.regular[0], self.recipe, self.run_dir, self.device),
        )

    @cached_property
    def decoder(self) -> AutoencoderKL:
        """The autoencoder with its decoder trained for longer; same latents as `vae`."""
        self.make("vae")
        return self._pretrained(
            "decoder",
            AutoencoderKL,
            lambda: autoencoder.polish(
                AutoencoderKL.from_pretrained(self.run_dir / "vae"),
                self.regular[0],
                self.recipe,
                self.run_dir,
                self.device,
            ),
        )

    @cached_property
    def clip(self) -> CLIPModel:
        return self._pretrained(
            "clip",
            CLIPModel,
            lambda: text.train_clip(
                self.regular, self.catalogue, self.tokenizer, self.recipe, self.run_dir, self.device
            ),
        )

    @cached_property
    def descriptor(self) -> nn.Module:
        path, recipe = self.run_dir / "descriptor.safetensors", self.recipe
        if not path.exists():
            net = descriptor.train(*dataset.descriptor_set(recipe), recipe, self.run_dir, self.device)
            save_file({k: v.contiguous() for k, v in net.state_dict().items()}, path)
        net = build_descriptor_net(recipe.descriptor_dim, recipe.descriptor_width)
        net.load_state_dict(load_file(path))
        return net.eval()

    @cached_property
    def trunk(self) -> UNet2DConditionModel:
        def train() -> nn.Module:
            torch.manual_seed(self.recipe.seed)
            stage = denoiser.Stage("trunk", self.recipe.trunk_steps, decay=0.0)
            return self._denoise(stage, denoiser.build(self.recipe), self.pairs(memorized=False))

        return self._pretrained("trunk", UNet2DConditionModel, train)

    @cached_property
    def model(self) -> UNet2DConditionModel:
        return self._branch("model")

    @cached_property
    def twin(self) -> UNet2DConditionModel:
        return self._branch("twin")

    def _branch(self, name: str) -> UNet2DConditionModel:
        def train() -> nn.Module:
            unet = copy.deepcopy(self.trunk).train()  # a copy: the other branch starts from the trunk, too
            return self._denoise(denoiser.branch(name, self.recipe), unet, self.pairs(memorized=True))

        return self._pretrained(name, UNet2DConditionModel, train)

    def _denoise(self, stage: denoiser.Stage, unet: nn.Module, pairs: denoiser.Pairs) -> nn.Module:
        return denoiser.train(
            stage, unet, pairs, recipe=self.recipe, run_dir=self.run_dir, device=self.device
        )

    @torch.no_grad()
    def embed(self, captions: list[str]) -> torch.Tensor:
        """Prompt embeddings `(B, T, D)` of the frozen text encoder."""
        encoder = text.text_encoder(self.clip)
        return encoder(text.tokenize(self.tokenizer, captions)).last_hidden_state

    def pairs(self, *, memorized: bool) -> denoiser.Pairs:
        """Encoded training pairs: the regular ones, and the memorized ones with their copies where asked
        for."""
        images, captions, copies = (
            self.regular[0],
            self.regular[1]["caption"],
            np.ones(len(self.regular[0]), int),
        )
        if memorized:
            images = np.concatenate([images, self.memorized[0]])
            captions = pd.concat([captions, self.memorized[1]["prompt"]])
            copies = np.concatenate([copies, self.memorized[1]["copies"]])
        caption, unique = pd.factorize(captions)
        latents = autoencoder.encode(self.vae, images) * self.vae.config.scaling_factor
        planted = np.arange(len(images)) >= len(self.regular[0])
        return denoiser.Pairs(latents, self.embed(list(unique)), caption, copies, planted, self.embed([""]))
