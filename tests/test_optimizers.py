"""AdamW with its state elsewhere is AdamW; what is not there is said in one line."""

import copy
import sys

import pytest
import torch
from torch import nn

from dori.errors import DoriError
from dori.optimizers import make_optimizer


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))


def trained(net, optimizer, steps, first=0):
    """Take steps whose data follow from their numbers; the rate falls, step 1 leaves out the last layer."""
    for step in range(first, first + steps):
        optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad(set_to_none=True)
        (net[0](x).square().mean() if step == 1 else net(x).square().mean()).backward()
        optimizer.step()
    return [p.detach().clone() for p in net.parameters()]


def made(name, net):
    return make_optimizer(name, net.parameters(), lr=0.1, weight_decay=0.01)


def test_the_offloaded_state_gives_the_same_weights_to_the_bit(net):
    other = copy.deepcopy(net)
    one, two = trained(net, made("adamw", net), 5), trained(other, made("offloaded", other), 5)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_the_offloaded_state_can_be_saved_and_goes_on(net, tmp_path):
    whole = copy.deepcopy(net)
    expected = trained(whole, made("offloaded", whole), 5)
    first = made("offloaded", net)
    weights = trained(net, first, 2)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    later = copy.deepcopy(net)
    with torch.no_grad():
        for p, value in zip(later.parameters(), weights, strict=True):
            p.copy_(value)
    second = made("offloaded", later)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    found = trained(later, second, 3, first=2)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_half_precision_weights_have_an_exact_master(net):
    half = copy.deepcopy(net).to(torch.bfloat16)
    optimizer = make_optimizer("offloaded", half.parameters(), lr=1e-4, weight_decay=0.0)
    start = [p.detach().clone() for p in half.parameters()]
    for _ in range(40):  # each step is below the rounding of a weight near 0.5: alone it would be lost
        for p in half.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
    moved = [(a - b).float().abs().max().item() for a, b in zip(start, half.parameters(), strict=True)]
    assert all(m == pytest.approx(40e-4, rel=0.5) for m in moved)


def test_eight_bits_need_their_package(net, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(DoriError, match="`pip install bitsandbytes`, or use offloaded"):
        made("adamw-8bit", net)


def test_an_unknown_optimiser(net):
    with pytest.raises(DoriError, match="unknown optimiser 'sgd'; use adamw, offloaded"):
        made("sgd", net)
