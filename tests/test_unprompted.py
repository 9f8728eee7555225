"""Does the empty prompt return memorized images?"""

import pandas as pd
import pytest

from dori.benchmark import load_benchmark
from dori.experiments.unprompted import unprompted_table
from dori.store import RunStore
from dori.study import PRESETS, Study


@pytest.fixture
def study(tiny_model, descriptor, benchmark_csv, tmp_path):
    bench = load_benchmark(benchmark_csv)
    memorized, regular = bench.select(kind=["verbatim", "template"]), bench.select(kind="none")
    return Study(tiny_model, memorized, regular, descriptor, RunStore(tmp_path / "run"), PRESETS["smoke"])


def test_each_image_is_compared_with_its_nearest_memorized_one(study, monkeypatch):
    whole = study.memorized.images(size=study.model.defaults.image_size)
    monkeypatch.setattr(type(study.model), "sample", lambda self, embeds, seeds, **how: whole[[1, 0]])
    table = unprompted_table(study, 2)
    assert table["score"].tolist() == pytest.approx([1.0, 1.0], abs=1e-5)
    assert table["replicated"].all()
    assert set(table["model"]) == {study.model.name}


def test_a_second_look_draws_nothing(study, monkeypatch):
    first = unprompted_table(study, 3)
    monkeypatch.setattr(type(study.model), "sample", None)
    pd.testing.assert_frame_equal(first, unprompted_table(study, 3))


def test_the_images_are_of_the_empty_prompt_without_guidance(study, monkeypatch):
    seen, sample = {}, type(study.model).sample

    def noted(self, embeds, seeds, **how):
        seen.update(embeds=embeds, seeds=seeds, **how)
        return sample(self, embeds, seeds, **how)

    monkeypatch.setattr(type(study.model), "sample", noted)
    unprompted_table(study, 3)
    assert seen["guidance_scale"] == 1
    assert len(set(seen["seeds"])) == 3
    assert (seen["embeds"] == study.model.unconditional).all()
