"""UnlearnDiffAtk (arXiv 2310.11868) for single images: which few words before a caption bring the image back?

Unlike DoRI it searches what a text-only interface takes: tokens, put through the text encoder. Published for
concepts; here a training image is the target, and a copy of it the success.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import BatchEncoding

from dori.attack import denoising_losses, max_batch
from dori.errors import DoriError
from dori.hooks import Masks, masked
from dori.model import TextToImageModel


@dataclass(frozen=True)
class UnlearnDiff:
    """Settings; the defaults are the published ones. Raises DoriError for settings that make no sense."""

    tokens: int = 5  #: k, put between BOS and the caption
    timesteps: int = 50  #: visited in order, from 10 to 990
    iterations: int = 40  #: on each, of one fresh eps each
    lr: float = 0.01  #: of Adam
    weight_decay: float = 0.1
    look_every: int = 1  #: timesteps after which the most probable tokens are put to the model

    def __post_init__(self) -> None:
        if min(self.tokens, self.timesteps, self.iterations, self.look_every) < 1 or not self.lr > 0:
            raise DoriError(f"{self}: numbers must be 1 or more and the learning rate positive")

    @property
    def passes(self) -> int:
        """Rows through the UNet, forward and back, that one search takes."""
        return self.timesteps * self.iterations

    @property
    def visited(self) -> list[int]:
        """The timesteps in the order of their visits."""
        return torch.linspace(10, 990, self.timesteps).round().int().tolist()

    @property
    def looks(self) -> tuple[int, ...]:
        """Iterations after which the tokens are looked at."""
        ends = {*range(self.look_every, self.timesteps, self.look_every), self.timesteps}
        return tuple(self.iterations * n for n in sorted(ends))


@dataclass(frozen=True)
class Prefixed:
    """What was found for each of N images."""

    start: Tensor  #: what the captions alone encode to (N, T, D)
    tokens: dict[int, Tensor]  #: iterations, as plan.looks -> most probable tokens (N, k)
    embeds: dict[int, Tensor]  #: the same -> what they and the caption encode to (N, T, D)
    losses: Tensor  #: (N, iterations), each of fresh noise at the timestep visited

    @property
    def failed(self) -> Tensor:
        """(N,) True where a loss is no longer finite."""
        return ~self.losses.isfinite().all(1)


def unlearndiff_attack(
    model: TextToImageModel,
    latents: Tensor,
    prompts: Sequence[str],
    plan: UnlearnDiff,
    *,
    seeds: Sequence[int],
    units: Masks | Sequence[Masks] | None = None,
) -> Prefixed:
    r"""Search k tokens before each caption whose embedding y minimises
    :math:`\lVert \epsilon - \epsilon_\theta(x_t, t, y) \rVert_2^2`.

    Each token is a row of probabilities over the vocabulary, uniform at first; a drawn one-hot goes forward,
    its gradient (clipped to [-1, 1]) straight through to the row, and Adam's step is projected back onto the
    simplex. `latents` (N, C, h, w). A caption that is too long with k more tokens loses its last ones. Draws
    come from the image's own generator (`seeds`), so its company does not matter; `units` are off meanwhile.
    v-models are attacked in v. Raises DoriError.
    """
    n = len(latents)
    if not n == len(prompts) == len(seeds) or not n:
        raise DoriError(f"{n} images, {len(prompts)} captions, {len(seeds)} seeds: give one each per image")
    if len(model.architecture.encoders) > 1:
        raise DoriError(
            f"UnlearnDiffAtk searches words for one text encoder; model '{model.name}' has several, with "
            "vocabularies of their own: use the attack on embeddings (dori)"
        )
    at_once, parts = max_batch(model, model.unconditional), []
    for part in (slice(a, a + at_once) for a in range(0, n, at_once)):
        off = units if isinstance(units, Mapping) else (units or [{}] * n)[part]
        search = _Search(model, latents[part], prompts[part], plan, seeds[part])
        with masked(model.unet, off):
            parts.append(search.run())
    looks = parts[0].embeds
    return Prefixed(
        torch.cat([p.start for p in parts]),
        {s: torch.cat([p.tokens[s] for p in parts]) for s in looks},
        {s: torch.cat([p.embeds[s] for p in parts]) for s in looks},
        torch.cat([p.losses for p in parts]),
    )


class _Search:
    """One batch of images; each row of tokens has its own loss and generator, so none sees the others'."""

    def __init__(
        self,
        model: TextToImageModel,
        latents: Tensor,
        prompts: Sequence[str],
        plan: UnlearnDiff,
        seeds: Sequence[int],
    ) -> None:
        self.model, self.x0, self.plan, self.prompts = model, latents, plan, prompts
        self.captions = prefixed(model, prompts, plan.tokens)
        self.generators = [torch.Generator("cpu").manual_seed(int(s)) for s in seeds]
        words = len(model.text_encoder.get_input_embeddings().weight)
        self.rows = torch.full((len(latents), plan.tokens, words), 1 / words, device=model.device)

    def run(self) -> Prefixed:
        """Visit the timesteps in order."""
        adam = torch.optim.Adam([self.rows], lr=self.plan.lr, weight_decay=self.plan.weight_decay)
        tokens, embeds, losses = {}, {}, []
        for t in self.plan.visited:
            for _ in range(self.plan.iterations):
                loss, self.rows.grad = self.loss_and_gradient(t)
                adam.step()
                self.rows.copy_(on_simplex(self.rows))
                losses.append(loss)
            if len(losses) in self.plan.looks:
                tokens[len(losses)] = self.rows.argmax(2)
                with torch.no_grad():
                    best = F.one_hot(tokens[len(losses)], self.rows.shape[2]).to(self.rows)
                    embeds[len(losses)] = encode_prefixed(self.model, best, self.captions)
        return Prefixed(self.model.encode_prompts(self.prompts), tokens, embeds, torch.stack(losses, 1))

    def loss_and_gradient(self, t: int) -> tuple[Tensor, Tensor]:
        """Loss (n,) of drawn tokens at one timestep, and its gradient in the rows (n, k, V)."""
        rows = self.rows.detach().requires_grad_()
        y = encode_prefixed(self.model, _StraightThrough.apply(rows, self.draw()), self.captions)
        noise = [torch.randn(self.x0.shape[1:], generator=g) for g in self.generators]
        timesteps = torch.full((1, len(y)), t, device=self.x0.device)
        loss = denoising_losses(self.model, self.x0, y, torch.stack(noise)[None].to(self.x0), timesteps)[0]
        return loss.detach(), torch.autograd.grad(loss.sum(), rows)[0]

    def draw(self) -> Tensor:
        """One-hot tokens from the rows' probabilities, (n, k, V)."""
        sound = self.rows.isfinite().all(2, keepdim=True)  # a lost image must not stop the others
        rows = self.rows.where(sound, torch.ones_like(self.rows)).cpu()
        drawn = [
            torch.multinomial(p, 1, generator=g)[:, 0] for p, g in zip(rows, self.generators, strict=True)
        ]
        return F.one_hot(torch.stack(drawn), rows.shape[2]).to(self.rows)


class _StraightThrough(torch.autograd.Function):
    """Drawn one-hots forward; backward their gradient, clipped to [-1, 1], as if they were the rows."""

    @staticmethod
    def forward(ctx, rows: Tensor, drawn: Tensor) -> Tensor:
        return drawn.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return F.hardtanh(gradient), None


def on_simplex(rows: Tensor) -> Tensor:
    """The nearest point (L2) with entries >= 0 that sum to 1, along the last axis.

    Exact, by sorting (Duchi et al. 2008); the published code finds the same point by bisection.
    """
    falling = rows.sort(dim=-1, descending=True).values
    above = falling.cumsum(-1) - 1
    ranks = torch.arange(1, rows.shape[-1] + 1, device=rows.device)
    kept = (falling * ranks > above).sum(-1, keepdim=True).clamp_min(1)
    return (rows - above.gather(-1, kept - 1) / kept).clamp_min(0)


def prefixed(model: TextToImageModel, prompts: Sequence[str], k: int) -> BatchEncoding:
    """Captions as N x T token ids (and their mask) with k places, any id, after BOS.

    Raises DoriError where the model takes no k more tokens.
    """
    tokenizer, length = model.tokenizer, model.tokenizer.model_max_length
    if k > length - 2:
        raise DoriError(f"{k} tokens before the caption: this model takes {length - 2} in all")
    found = tokenizer(list(prompts), truncation=True, max_length=length - k).input_ids
    ids = [[i[0], *[i[0]] * k, *i[1:]] for i in found]
    padded = tokenizer.pad({"input_ids": ids}, padding="max_length", max_length=length, return_tensors="pt")
    return padded.to(model.device)


def encode_prefixed(model: TextToImageModel, rows: Tensor, captions: BatchEncoding) -> Tensor:
    """Embeddings (N, T, D) of captions with the k tokens of `rows` (N, k, V) in the places after BOS.

    A row is a weighting of the vocabulary: one-hot for a token. Differentiable in the rows.
    """
    words, k = model.text_encoder.get_input_embeddings(), rows.shape[1]

    def put(_, __, embedded: Tensor) -> Tensor:
        soft = rows.to(embedded.dtype) @ words.weight
        return torch.cat([embedded[:, :1], soft, embedded[:, 1 + k :]], 1)

    wanted = getattr(model.text_encoder.config, "use_attention_mask", False)
    handle = words.register_forward_hook(put)
    try:
        mask = captions.attention_mask if wanted else None
        return model.text_encoder(captions.input_ids, attention_mask=mask)[0].to(rows.dtype)
    finally:
        handle.remove()


def spelled(model: TextToImageModel, tokens: Tensor) -> list[str]:
    """Tokens (N, k) as the tokenizer writes them, "</w>" at the end of a word."""
    known = model.tokenizer.convert_ids_to_tokens
    return [" ".join(str(token) for token in known(row)) for row in tokens.tolist()]
