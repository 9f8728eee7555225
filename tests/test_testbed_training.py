"""Training: what the losses compute, and that a run that stops goes on as if it had not."""

import errno
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from dori.errors import DoriError
from dori.metrics.descriptor_net import build_descriptor_net, gem
from dori.testbed import descriptor, text
from dori.testbed.denoiser import Pairs, branch, train_noise
from dori.testbed.denoiser import train as train_denoiser
from dori.testbed.recipe import Recipe
from dori.training import Fit, Schedule, step_rng, torch_rng


def _fit(run_dir, steps=6, fail_at=None, failure=KeyboardInterrupt):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))

    def loss(step, rng):
        if step == fail_at:
            raise failure
        x = torch.randn(8, 3, generator=torch_rng(rng))
        return (net(x) - x.sum(1, keepdim=True)).square().mean(), {}

    return Fit("part", net, loss, Schedule(steps, 1e-2, warmup=2), run_dir, seed=3, checkpoint_every=2)


def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(tmp_path):
    whole = _fit(tmp_path / "whole").run()
    with pytest.raises(KeyboardInterrupt):
        _fit(tmp_path / "cut", fail_at=5).run()
    resumed = _fit(tmp_path / "cut")
    assert resumed.step == 4
    again = resumed.run()
    for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_resumed_average_is_where_its_module_is(tmp_path):
    _fit(tmp_path).run()
    there = Fit("part", nn.Linear(3, 4).to("meta"), None, Schedule(6, 1e-2), tmp_path / "new", seed=3)
    state = torch.load(tmp_path / "part.pt", weights_only=True)
    state["module"] = state["average"] = {"weight": torch.ones(4, 3), "bias": torch.ones(4)}
    state["optimizer"] = there.optimizer.state_dict()
    torch.save(state, there.checkpoint)
    resumed = Fit("part", nn.Linear(3, 4).to("meta"), None, Schedule(6, 1e-2), tmp_path / "new", seed=3)
    assert {value.device.type for value in resumed.average.values()} == {"meta"}


def test_a_diverging_loss_stops_and_names_the_checkpoint(tmp_path):
    fit = _fit(tmp_path)
    fit.loss = lambda step, rng: (fit.module(torch.ones(2, 3)).sum() * float("nan"), {})
    with pytest.raises(DoriError, match=r"part: the loss is nan at step 0; .*part\.pt"):
        fit.run()


def test_a_full_gpu_is_one_line_and_the_checkpoint_stays(tmp_path):
    out_of_memory = torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20.00 GiB.")
    with pytest.raises(DoriError, match=r"memory is full at step 5; the last good checkpoint is .*part\.pt"):
        _fit(tmp_path, fail_at=5, failure=out_of_memory).run()
    assert _fit(tmp_path).step == 4


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
    ],
)
def test_a_full_disk_is_one_line_and_the_checkpoint_before_stays(tmp_path, monkeypatch, failure):
    fit, save = _fit(tmp_path), torch.save

    def full(state, path):
        save(state, path)  # some of it is there
        if state["step"] == 4:
            raise failure

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(DoriError, match=r"cannot write .*part\.pt \(.*make room"):
        fit.run()
    assert [path.name for path in tmp_path.iterdir()] == ["part.pt"]
    assert _fit(tmp_path).step == 2


def test_schedule_warms_up_and_decays():
    schedule = Schedule(100, 1.0, warmup=10, decay=0.5)
    assert schedule(0) == pytest.approx(0.1)
    assert schedule(40) == 1.0
    assert schedule(75) == pytest.approx(0.5)


def test_steps_have_their_own_random_numbers():
    draws = {step_rng(0, part, step).integers(2**62) for part in ("a", "b") for step in (0, 1)}
    assert len(draws) == 4
    assert step_rng(0, "a", 1).integers(2**62) in draws


def test_pairs_are_drawn_in_proportion_to_their_copies():
    pairs = Pairs(
        torch.zeros(3, 1),
        torch.zeros(3, 1, 1),
        np.arange(3),
        np.array([1, 3, 16]),
        np.zeros(3, bool),
        torch.zeros(1, 1, 1),
    )
    counts = np.bincount(pairs.draw(20_000, np.random.default_rng(0)), minlength=3) / 20_000
    assert counts == pytest.approx([0.05, 0.15, 0.80], abs=0.01)


def test_info_nce_and_entropy_by_hand():
    labels = torch.tensor([0, 1, 0, 1])
    similarity = (labels[:, None] == labels[None]).float()
    assert descriptor.info_nce(similarity, labels, 1.0).item() == pytest.approx(
        -math.log(math.e / (math.e + 2)), abs=1e-6
    )
    assert descriptor.entropy(similarity, labels).item() == pytest.approx(-math.log(math.sqrt(2)), abs=1e-6)


def test_gem_is_the_mean_at_one_and_nears_the_maximum():
    x = torch.rand(2, 3, 4, 4)
    assert torch.allclose(gem(x, 1.0), x.mean((2, 3)))
    assert torch.allclose(gem(x, 200.0), x.amax((2, 3)), atol=0.03)


def test_descriptors_have_unit_length():
    found = build_descriptor_net(16, 8).eval()(torch.rand(3, 3, 64, 64))
    assert found.shape == (3, 16)
    assert torch.allclose(found.norm(dim=1), torch.ones(3), atol=1e-5)


def test_a_descriptor_batch_holds_eights_of_one_caption():
    groups = np.repeat(np.arange(20), 10)
    rows = descriptor.batch_rows(groups, 64, np.random.default_rng(0))
    assert len(set(rows)) == 64
    assert sorted(np.unique(groups[rows], return_counts=True)[1]) == [8] * 8


def test_same_group_scores_leave_each_picture_and_other_groups_out():
    scores = descriptor.same_group_scores(torch.eye(4).repeat(3, 1)[:, :4], np.repeat([0, 1, 2], 4))
    assert scores.shape == (18,)
    assert not scores.any()


def test_tokenizer_separates_titles_and_keeps_words(tmp_path):
    tokenizer = text.train_tokenizer(
        ["two red kites by the sea"] * 20 + ["the skoath velund"], Recipe(vocabulary=300)
    )
    ids = text.tokenize(tokenizer, ["two red kites", "zzyzx"])
    assert ids.shape == (2, 16)
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == "two red kites"
    assert ids[0, 0] == tokenizer.bos_token_id
    assert tokenizer.eos_token_id in ids[1]
    assert (ids[1] != ids[0]).any()


def test_noise_offset_widens_the_mean_of_a_channel_and_nothing_else():
    plain, offset = (train_noise((400, 4, 16, 16), np.random.default_rng(0), x) for x in (0, 0.3))
    assert plain.mean((2, 3)).std() == pytest.approx(1 / 16, rel=0.1)
    assert offset.mean((2, 3)).std() == pytest.approx((0.3**2 + 1 / 256) ** 0.5, rel=0.1)
    assert torch.allclose(plain - plain.mean((2, 3), True), offset - offset.mean((2, 3), True), atol=1e-5)


def test_a_schedule_without_decay_stays_at_its_rate():
    schedule = Schedule(100, 1.0, warmup=10, decay=0.0)
    assert schedule(99) == 1.0


class _Recorder(nn.Module):
    """Stands for the UNet: notes what it is shown."""

    def __init__(self):
        super().__init__()
        self.weight, self.seen = nn.Parameter(torch.ones(1)), []

    def forward(self, noisy, timesteps, prompt_embeds):
        self.seen.append((noisy.clone(), timesteps, prompt_embeds))
        return SimpleNamespace(sample=noisy * self.weight)


def _shown(pairs, recipe, run_dir):
    """What model and twin are shown in training, (latents, timesteps, embeddings) of each step."""
    seen = {}
    for name in ("model", "twin"):
        unet = _Recorder()
        train_denoiser(branch(name, recipe), unet, pairs, recipe=recipe, run_dir=run_dir)
        seen[name] = unet.seen
    return seen


def _eight_pairs():
    memorized = np.arange(8) >= 5
    embeds, copies = torch.randn(8, 3, 5), np.where(memorized, 4, 1)
    return Pairs(torch.randn(8, 4, 2, 2), embeds, np.arange(8), copies, memorized, torch.zeros(1, 3, 5))


def test_captions_of_memorized_pairs_are_never_dropped(tmp_path):
    pairs, recipe = _eight_pairs(), Recipe(unet_batch=16, branch_steps=2, caption_dropout=1.0)
    for _, _, embeds in _shown(pairs, recipe, tmp_path)["model"]:
        empty = embeds.flatten(1).eq(0).all(1)
        assert 0 < empty.sum() < 16
        kept = {tuple(e.flatten().tolist()) for e in embeds[~empty]}
        assert kept <= {tuple(e.flatten().tolist()) for e in pairs.prompt_embeds[pairs.memorized]}


def test_the_twin_is_shown_the_models_batches_without_the_memorized_pairs(tmp_path):
    pairs = _eight_pairs()
    seen = _shown(pairs, Recipe(unet_batch=16, branch_steps=2), tmp_path)
    for whole, rest in zip(seen["model"], seen["twin"], strict=True):
        assert len(whole[0]) == 16
        assert 0 < len(rest[0]) < 16
        found = [(whole[0] == image).flatten(1).all(1).nonzero().item() for image in rest[0]]
        assert found == sorted(found)
        assert torch.equal(whole[1][found], rest[1])
        assert torch.equal(whole[2][found], rest[2])
        unseen = [row for row in range(16) if row not in found]
        shown = {tuple(e.flatten().tolist()) for e in pairs.prompt_embeds[~pairs.memorized]}
        assert not shown & {tuple(whole[2][row].flatten().tolist()) for row in unseen}
