"""LoRA adapters on all attention and feed-forward layers: trained instead of the model, then merged."""

import contextlib
from collections.abc import Iterator

import torch
from diffusers.models.modeling_utils import ModelMixin
from peft import LoraConfig

from dori.mitigation.targets import trainable

NAME = "dori"
MODULES = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]  # of attn1 and attn2
MODULES += ["add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]  # SD3's stream of the text
MODULES += ["ff_context.net.0.proj", "ff_context.net.2"]


@contextlib.contextmanager
def adapted(unet: ModelMixin, rank: int | None, *, seed: int = 0) -> Iterator[None]:
    """Inside, adapters of this rank are all that is trained; at the end they are merged into the weights.

    After an exception they are dropped and the weights are as before. Which weights require a gradient is put
    back either way. Without a rank the whole network is trained. Source: Hu et al. 2022 (LoRA); alpha = rank.
    """
    if rank is None:
        with trainable(unet):
            yield
        return
    wanted = {name: p.requires_grad for name, p in unet.named_parameters()}
    unet.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):  # adapters begin at random numbers of torch's global generator
        torch.manual_seed(seed)
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=MODULES), adapter_name=NAME)
    try:
        yield
        unet.fuse_lora()
    finally:
        unet.unload_lora()
        unet.eval()
        for name, p in unet.named_parameters():
            p.requires_grad_(wanted[name])
