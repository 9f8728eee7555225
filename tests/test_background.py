"""The background chapter's pictures: noise covers, guidance pulls, attention is a share, copies score."""

import pytest
import torch
from conftest import WORDS, write_benchmark

from dori.experiments import background
from dori.study import open_study


@pytest.fixture(scope="module")
def study(tiny_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("background")
    rows = [{"id": "a", "prompt": f"{WORDS[0]} {WORDS[1]}", "image": "a.png", "kind": "none"}]
    rows += [{"id": "b", "prompt": WORDS[2], "image": "b.png", "kind": "verbatim"}]
    csv = write_benchmark(folder, rows)
    run = folder / "run"
    return open_study(model=str(tiny_dir), benchmark=csv, preset="smoke", device="cpu", run_dir=run)


def test_noise_covers_the_image_step_by_step(study):
    seen = background.noising(study, study.regular, shown=4)
    clean = next(iter(seen.values()))
    away = [float((image - clean).abs().mean()) for image in seen.values()]
    assert away == sorted(away)
    assert list(seen)[-1] == "t = 999"


def test_the_strip_ends_with_what_sampling_paints(study):
    rows = background.denoising_strip(study, study.regular)
    steps = study.sampling().steps
    seeds = [background.noise_seed(study.seed, "a", 0)]
    embeds = study.model.encode_prompts(study.regular.prompts())
    painted = study.model.sample(embeds, seeds, num_inference_steps=steps)[0]
    assert list(rows["guessed"]) == list(rows["given"])
    torch.testing.assert_close(rows["guessed"][f"step {steps}"], painted)
    start = study.model.decode(study.model.initial_latents(seeds))[0].cpu()
    torch.testing.assert_close(rows["given"]["step 1"], start)


def test_without_guidance_the_prompt_is_not_heard(study):
    deaf = background.guidance_images(study, study.regular, [0.0])["0"]
    seeds = [background.noise_seed(study.seed, "a", k) for k in range(len(deaf))]
    empty = study.model.unconditional.expand(len(seeds), -1, -1)
    steps = min(background.QUICK, study.sampling().steps)
    painted = study.model.sample(empty, seeds, guidance_scale=1, num_inference_steps=steps)
    torch.testing.assert_close(deaf, painted, atol=1e-4, rtol=0)


def test_each_place_reads_all_tokens_together_once():
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(3, 16, 8, generator=generator)
    keys = torch.randn(3, 5, 8, generator=generator)
    read = background._probabilities(queries, keys, heads=2)
    assert read.shape == (5, 4, 4)
    torch.testing.assert_close(read.sum(0), torch.ones(4, 4))


def test_a_token_that_answers_one_place_is_read_there():
    queries, keys = torch.zeros(1, 4, 4), torch.zeros(1, 2, 4)
    queries[0, 2, 0], keys[0, 1, 0] = 6.0, 6.0
    read = background._probabilities(queries, keys, heads=1)[1].flatten()
    assert int(read.argmax()) == 2


def test_every_word_has_a_map_and_special_tokens_have_none(study):
    maps = background.attention_maps(study, study.regular)
    assert list(maps) == ["image", WORDS[0], WORDS[1]]
    size = study.model.defaults.image_size
    assert all(m.shape == (size, size) for word, m in maps.items() if word != "image")
    assert all(0 <= float(m.min()) <= float(m.max()) <= 1 for m in maps.values())


def test_altered_copies_score_above_another_picture_of_the_same_caption():
    from dori.metrics.copy import load_descriptor

    class Bundled:
        descriptor = load_descriptor("bundled", device="cpu")

    (entry,) = background.copies(Bundled)
    scores = entry["scores"]
    assert list(entry["images"]) == ["original", *scores]
    assert min(scores[name] for name in ("blurred", "recoloured", "cropped")) > Bundled.descriptor.threshold
    assert scores["same caption"] < min(score for name, score in scores.items() if name != "same caption")
    assert scores["more so"] < scores["cropped"]
