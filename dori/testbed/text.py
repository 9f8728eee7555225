"""The testbed's tokenizer and small CLIP, trained from scratch on captions and pictures that no denoiser
memorizes.

The text half conditions the denoiser (frozen, as in Stable Diffusion); the pair measures prompt alignment.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, trainers
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTokenizer

from dori.testbed.autoencoder import to_tensor
from dori.testbed.canvas import IMAGE_SIZE
from dori.testbed.captions import SLOTS
from dori.testbed.recipe import Recipe
from dori.training import Fit, Schedule

START, END = "<|startoftext|>", "<|endoftext|>"


def train_tokenizer(captions: list[str], recipe: Recipe) -> CLIPTokenizer:
    """Byte-pair encoding as CLIP's (lower case, `</w>` ends a word), learnt from `captions`."""
    rules = CLIPTokenizer()._tokenizer  # CLIP's own normaliser and splitter
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=END))
    tokenizer.normalizer, tokenizer.pre_tokenizer = rules.normalizer, rules.pre_tokenizer
    letters = [chr(c) for c in range(33, 127)]
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary - 2,
        initial_alphabet=letters,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    vocabulary, merges = _vocabulary(tokenizer)
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=recipe.tokens)


def _vocabulary(tokenizer: Tokenizer) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary with the two special tokens last, as in CLIP, and the merges."""
    import json

    state = json.loads(tokenizer.to_str())["model"]
    # A letter that ends a word and a letter inside one are different tokens: keep both for every letter.
    tokens = dict.fromkeys(
        [*(t for t in state["vocab"]), *(f"{chr(c)}</w>" for c in range(33, 127)), START, END]
    )
    return {token: i for i, token in enumerate(tokens)}, [tuple(m) for m in state["merges"]]


def build_clip(tokenizer: CLIPTokenizer, recipe: Recipe) -> CLIPModel:
    """An untrained CLIP with a 2-layer text tower and a small vision transformer on 8x8 patches."""
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": recipe.text_width,
        "intermediate_size": 4 * recipe.text_width,
        "num_hidden_layers": recipe.text_layers,
        "num_attention_heads": 4,
        "max_position_embeddings": recipe.tokens,
        "projection_dim": 64,
        "initializer_factor": 1.0,
        **ids,
    }
    vision = {
        "hidden_size": 96,
        "intermediate_size": 384,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": IMAGE_SIZE,
        "patch_size": 8,
        "projection_dim": 64,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """Token ids `(B, tokens)`, padded and cut."""
    return tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids


def train_clip(
    data: tuple[np.ndarray, pd.DataFrame],
    titled: tuple[np.ndarray, list[str]],
    tokenizer: CLIPTokenizer,
    recipe: Recipe,
    run_dir: Path,
    device: str = "cpu",
) -> CLIPModel:
    """Contrastive training (Radford et al. 2021); what is returned is on the CPU.

    One pair in eight is a titled one, matched by its title alone. Pairs of one batch whose captions mean the
    same are positives of each other.
    """
    torch.manual_seed(recipe.seed)
    clip = build_clip(tokenizer, recipe).to(device)
    images = np.concatenate([data[0], titled[0]])
    ids = torch.cat([tokenize(tokenizer, list(data[1]["caption"])), tokenize(tokenizer, titled[1])])
    meaning = pd.factorize(data[1][list(SLOTS)].agg(" ".join, axis=1))[0]
    meaning = np.concatenate([meaning, meaning.max() + 1 + np.arange(len(titled[1]))])
    regular, other = len(data[0]), recipe.clip_batch // 8

    def loss(step: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        rows = np.concatenate(
            [
                rng.integers(regular, size=recipe.clip_batch - other),
                rng.integers(regular, len(images), size=other),
            ]
        )
        shift = rng.integers(-2, 3, size=2)
        pixels = np.roll(images[rows], tuple(shift), axis=(1, 2))
        out = clip(input_ids=ids[rows].to(device), pixel_values=to_tensor(pixels).to(device))
        same = torch.from_numpy(meaning[rows][:, None] == meaning[rows][None]).float().to(device)
        target = same / same.sum(1, keepdim=True)
        both = (
            F.cross_entropy(out.logits_per_image, target) + F.cross_entropy(out.logits_per_text, target)
        ) / 2
        hit = same.gather(1, out.logits_per_image.argmax(1, keepdim=True)).mean().item()
        return both, {"accuracy": hit}

    fit = Fit(
        "clip",
        clip,
        loss,
        Schedule(recipe.clip_steps, 1.5e-3, decay=0.6),
        run_dir,
        recipe.seed,
        ema_decay=0.99,
        weight_decay=0.05,
    )
    return fit.run().cpu()


def text_encoder(clip: CLIPModel) -> CLIPTextModel:
    """The text half as the stand-alone model that a diffusers pipeline expects."""
    encoder = CLIPTextModel(clip.config.text_config)
    encoder.load_state_dict(clip.text_model.state_dict())
    return encoder.eval()
