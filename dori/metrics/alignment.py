"""Does an image show what its prompt says? Prompt alignment and attribute accuracy by a CLIP model."""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTokenizer

from dori.errors import DoriError, first_line
from dori.store import weights_hash


class ClipScorer:
    """A CLIP model with the preprocessing it was trained with; text and image vectors of unit length."""

    def __init__(
        self,
        model: CLIPModel,
        tokenizer: CLIPTokenizer,
        *,
        name: str,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        device: str | torch.device = "cpu",
    ) -> None:
        self.model, self.tokenizer, self.name = model.to(device).eval().requires_grad_(False), tokenizer, name
        self.mean, self.std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (mean, std))
        self.device, self.image_size = torch.device(device), model.config.vision_config.image_size

    @classmethod
    def load(cls, source: str | Path = "bundled", *, device: str | torch.device = "cpu") -> "ClipScorer":
        """The testbed's own CLIP, or a transformers CLIP directory or Hub id. Raises DoriError."""
        bundled = str(source) == "bundled"
        if bundled:
            from dori.testbed.paths import TESTBED

            source = TESTBED / "clip"
        try:
            model = CLIPModel.from_pretrained(str(source), dtype=torch.float32, use_safetensors=True)
            tokenizer = CLIPTokenizer.from_pretrained(str(source))
        except Exception as error:  # transformers and the Hub client raise many kinds
            raise DoriError(f"CLIP '{source}' cannot be loaded ({first_line(error, 160)})") from None
        name = "clip (bundled)" if bundled else str(source)
        return cls(model, tokenizer, name=name, device=device, **_normalisation(Path(source)))

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (16 hex digits) of the weights and of what images are normalised by."""
        normal = [v.flatten().tolist() for v in (self.mean, self.std)]
        return weights_hash([self.model], json.dumps(normal))

    @torch.no_grad()
    def embed_images(self, images: Tensor, *, batch_size: int = 256) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, d), unit length, on the CPU."""
        return torch.cat([self.image_features(part).cpu() for part in images.split(batch_size)])

    def image_features(self, images: Tensor) -> Tensor:
        """One batch of images to unit vectors on the model's device."""
        images, side = images.to(self.device), self.image_size
        if images.shape[-2:] != (side, side):
            images = F.interpolate(
                images, size=(side, side), mode="bicubic", antialias=True, align_corners=False
            )
        vision = self.model.vision_model(pixel_values=(images - self.mean) / self.std)
        return F.normalize(self.model.visual_projection(vision.pooler_output), dim=1)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts -> (B, d), unit length, on the CPU; long texts are cut, as CLIP cannot read them."""
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(
            list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        text = self.model.text_model(input_ids=tokens.input_ids.to(self.device))
        return F.normalize(self.model.text_projection(text.pooler_output), dim=1).cpu()


def clip_alignment(scorer: ClipScorer, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Cosine of each image with its own prompt, (B,); higher is better (the paper's A_CLIP)."""
    return (scorer.embed_images(images) * scorer.embed_texts(prompts)).sum(1)


def attribute_accuracy(
    scorer: ClipScorer, images: Tensor, attributes: Sequence[Mapping[str, str]], prompts: Sequence[str]
) -> pd.DataFrame:
    """Zero-shot check of each attribute: is the prompt nearer to the image than with that slot swapped?

    Returns a row per image and slot: image (its number), slot, said, seen, correct, chance.
    """
    vectors = scorer.embed_images(images)
    rows = []
    for number, (said, prompt) in enumerate(zip(attributes, prompts, strict=True)):
        for slot, captions in swapped_captions(said, prompt).items():
            scores = scorer.embed_texts(list(captions.values())) @ vectors[number]
            seen = list(captions)[int(scores.argmax())]
            rows.append((number, slot, said[slot], seen, seen == said[slot], 1 / len(captions)))
    return pd.DataFrame(rows, columns=["image", "slot", "said", "seen", "correct", "chance"])


def swapped_captions(attributes: Mapping[str, str], prompt: str) -> dict[str, dict[str, str]]:
    """For each slot of a testbed caption: value -> the caption with that value, wording kept."""
    from dori.testbed.captions import ATTRIBUTES, caption

    said = {slot: attributes[slot] for slot in ATTRIBUTES}
    phrase = next((p for p in range(32) if caption(said, p) == prompt), None)
    if phrase is None:
        raise DoriError(f"'{prompt}' is not a caption of the testbed; attribute accuracy needs one")
    return {
        slot: {value: caption({**said, slot: value}, phrase) for value in values}
        for slot, values in ATTRIBUTES.items()
    }


def _normalisation(directory: Path) -> dict[str, Sequence[float]]:
    """From preprocessor_config.json; OpenAI's for a Hub id, 0.5 for a directory without one."""
    path = directory / "preprocessor_config.json"
    if path.is_file():
        config = json.loads(path.read_text())
        return {"mean": config["image_mean"], "std": config["image_std"]}
    if directory.is_dir():
        return {}
    return {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
