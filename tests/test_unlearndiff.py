"""UnlearnDiffAtk: rows stay probabilities, tokens are what they say, and a planted trigger is found."""

import pytest
import torch
from conftest import adapt, make_pipeline
from torch.nn import functional as F

from dori import unlearndiff as module
from dori.errors import DoriError
from dori.model import TextToImageModel
from dori.sampling import alpha_sigma
from dori.store import weights_hash
from dori.unlearndiff import (
    UnlearnDiff,
    encode_prefixed,
    on_simplex,
    prefixed,
    spelled,
    unlearndiff_attack,
)

PROMPTS = ["red boat", "blue house", "one lake"]
SMALL = UnlearnDiff(tokens=2, timesteps=2, iterations=2)


def latents_of(model, n=3):
    return model.encode_images(torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(0)))


def by_bisection(row):
    """The published way: the shift at which the positive parts sum to 1."""
    low, high = row.min() - 1, row.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (row - middle).clamp_min(0).sum() > 1 else (low, middle)
    return (row - low).clamp_min(0)


def test_rows_are_projected_to_the_nearest_probabilities():
    rows = 3 * torch.randn(4, 5, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = on_simplex(rows)
    assert (found >= 0).all()
    torch.testing.assert_close(found.sum(-1), torch.ones(4, 5).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(found[1, 2], by_bisection(rows[1, 2]), atol=1e-9, rtol=0)
    torch.testing.assert_close(on_simplex(found), found)
    assert on_simplex(torch.tensor([0.6, 0.8])).tolist() == pytest.approx([0.4, 0.6])


def test_the_gradient_goes_straight_through_and_is_clipped():
    rows = torch.full((1, 1, 3), 1 / 3, requires_grad=True)
    drawn = torch.tensor([[[0.0, 1, 0]]])
    out = module._StraightThrough.apply(rows, drawn)
    assert torch.equal(out, drawn)
    (out * torch.tensor([0.5, -7, 3])).sum().backward()
    assert rows.grad.flatten().tolist() == [0.5, -1, 1]


def test_tokens_before_a_caption_encode_as_the_longer_caption_does(tiny_model):
    ids = tiny_model.tokenizer("dawn two", add_special_tokens=False).input_ids
    words = len(tiny_model.text_encoder.get_input_embeddings().weight)
    rows = F.one_hot(torch.tensor([ids]), words).float()
    found = encode_prefixed(tiny_model, rows, prefixed(tiny_model, ["red boat"], len(ids)))
    torch.testing.assert_close(found, tiny_model.encode_prompts(["dawn two red boat"]))
    assert "".join(spelled(tiny_model, torch.tensor([ids]))[0].split()) == "dawn</w>two</w>"


def test_long_captions_make_room(tiny_model):
    captions = prefixed(tiny_model, ["red boat " * 20, "red"], 3)
    assert captions.input_ids.shape == (2, 12)
    assert captions.input_ids[0, -1] == tiny_model.tokenizer.eos_token_id
    with pytest.raises(DoriError, match="takes 10"):
        prefixed(tiny_model, ["red"], 11)


@pytest.fixture
def planted(monkeypatch):
    """A model that paints each image for one planted token alone: the loss is (alpha/sigma)^2 (y* - y)^2.

    Word vectors are made large, so that the text encoder tells them apart.
    """

    class Toy(TextToImageModel):
        def predict(self, noisy, timesteps, prompt_embeds):
            alpha, sigma = alpha_sigma(self.alphas_cumprod, timesteps, noisy)
            return (noisy - alpha * prompt_embeds.reshape(noisy.shape)) / sigma

    model = adapt(make_pipeline())
    monkeypatch.setattr(module, "max_batch", lambda *_: 64)
    model.text_encoder.get_input_embeddings().weight.mul_(10)
    return Toy(model.pipe, defaults=model.defaults, name="toy", device=model.device)


def test_planted_tokens_are_found(planted):
    prompts, tokens = [*PROMPTS, "two hill"] * 2, [300, 402, 55, 530, 200, 410, 90, 480]
    words = len(planted.text_encoder.get_input_embeddings().weight)
    rows = F.one_hot(torch.tensor(tokens)[:, None], words).float()
    x0 = encode_prefixed(planted, rows, prefixed(planted, prompts, 1)).detach().reshape(8, 4, 6, 8)
    plan = UnlearnDiff(tokens=1, timesteps=4, iterations=30)
    found = unlearndiff_attack(planted, x0, prompts, plan, seeds=range(8))
    hits = [found.tokens[s][:, 0] == torch.tensor(tokens) for s in plan.looks]
    assert torch.stack(hits).any(0).sum() >= 6  # by chance, one in fifty
    exact = hits[-1].nonzero()[0, 0]
    torch.testing.assert_close(found.embeds[120][exact].reshape(4, 6, 8), x0[exact])


def test_timesteps_are_visited_in_the_published_order():
    assert UnlearnDiff().visited == list(range(10, 1000, 20))
    assert UnlearnDiff().looks == tuple(range(40, 2001, 40))
    assert UnlearnDiff(timesteps=5, iterations=2, look_every=2).looks == (4, 8, 10)


def test_company_does_not_matter_and_weights_stay(tiny_model, monkeypatch):
    before, x0 = weights_hash([tiny_model.unet, tiny_model.text_encoder]), latents_of(tiny_model)
    together = unlearndiff_attack(tiny_model, x0, PROMPTS, SMALL, seeds=[0, 1, 2])
    assert weights_hash([tiny_model.unet, tiny_model.text_encoder]) == before
    assert not tiny_model.text_encoder.get_input_embeddings()._forward_hooks
    monkeypatch.setattr(module, "max_batch", lambda *_: 1)
    apart = unlearndiff_attack(tiny_model, x0[1:], PROMPTS[1:], SMALL, seeds=[1, 2])
    torch.testing.assert_close(apart.losses, together.losses[1:], atol=1e-3, rtol=0)
    for step in SMALL.looks:
        assert torch.equal(apart.tokens[step], together.tokens[step][1:])
    assert together.losses.shape == (3, 4)
    torch.testing.assert_close(together.start, tiny_model.encode_prompts(PROMPTS))


def test_a_lost_image_leaves_the_others_alone(tiny_model):
    x0 = latents_of(tiny_model)
    whole = unlearndiff_attack(tiny_model, x0, PROMPTS, SMALL, seeds=[0, 1, 2])
    broken = x0.clone()
    broken[1] = float("nan")
    found = unlearndiff_attack(tiny_model, broken, PROMPTS, SMALL, seeds=[0, 1, 2])
    assert found.failed.tolist() == [False, True, False]
    assert torch.equal(found.tokens[4][[0, 2]], whole.tokens[4][[0, 2]])


def test_impossible_plans_are_refused(tiny_model):
    for wrong in ({"tokens": 0}, {"timesteps": 0}, {"lr": 0.0}, {"look_every": 0}):
        with pytest.raises(DoriError, match="UnlearnDiff"):
            UnlearnDiff(**wrong)
    with pytest.raises(DoriError, match="2 captions"):
        unlearndiff_attack(tiny_model, latents_of(tiny_model), PROMPTS[:2], SMALL, seeds=[0, 1, 2])
