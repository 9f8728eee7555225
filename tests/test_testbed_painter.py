"""The painter: any number of pictures from a seed, captions that fix only the coarse content."""

import numpy as np
import pytest

from dori.testbed import dataset
from dori.testbed.captions import ATTRIBUTES, SLOTS, caption, invented_title
from dori.testbed.painter import draw_scene, paint
from dori.testbed.recipe import Recipe

SMALL = Recipe(
    regular_images=8, heldout_images=6, catalogue_images=5, calibration_captions=3, calibration_variants=4
)


def test_a_picture_is_a_function_of_seed_and_index():
    together, table = paint(5, range(4))
    alone, row = paint(5, [2])
    assert np.array_equal(together[2], alone[0])
    assert table["caption"][2] == row["caption"][0]
    assert not np.array_equal(together[2], paint(6, [2])[0][0])


def test_pictures_are_rgb_bytes_with_contrast():
    images, _ = paint(5, range(6))
    assert images.shape == (6, 64, 64, 3)
    assert images.dtype == np.uint8
    assert images.reshape(6, -1).std(1).min() > 8


def test_one_caption_has_many_pictures():
    content = {slot: draw_scene(1, 0)[slot] for slot in SLOTS}
    images, table = paint(9, range(6), [content] * 6)
    assert table[list(SLOTS)].drop_duplicates().shape[0] == 1
    gaps = [np.abs(images[i].astype(float) - images[j]).mean() for i in range(6) for j in range(i)]
    assert min(gaps) > 8  # grey levels


@pytest.mark.parametrize("slot", SLOTS)
def test_each_attribute_changes_the_picture(slot):
    values = ATTRIBUTES[slot]
    images, _ = paint(3, [0] * len(values), [{slot: v} for v in values])
    assert len({image.tobytes() for image in images}) == len(values)


def test_captions_name_every_attribute_and_their_plural():
    content = {"time": "dusk", "place": "sea", "number": "two", "colour": "red", "object": "kite"}
    for phrase in range(4):
        words = caption(content, phrase).split()
        assert {"dusk", "sea", "two", "red", "kites"} <= set(words)
    assert "kites" not in caption(content | {"number": "one"}, 0)


def test_titles_say_nothing_about_the_picture():
    rng = np.random.default_rng(0)
    said = {word for _ in range(300) for word in invented_title(rng).split()}
    assert not said & {value for values in ATTRIBUTES.values() for value in values}


def test_sets_share_no_picture():
    sets = [
        dataset.training_images(8)[0],
        dataset.heldout(SMALL)[0],
        dataset.memorized(SMALL)[0],
        dataset.catalogue(SMALL)[0],
        dataset.calibration_set(SMALL)[0],
    ]
    pictures = [image.tobytes() for images in sets for image in images]
    assert len(set(pictures)) == len(pictures)


def test_memorized_table_follows_the_recipe():
    _, table = dataset.memorized(SMALL)
    verbatim = table[table["kind"] == "verbatim"]
    assert verbatim["copies"].value_counts().to_dict() == SMALL.copies
    assert table["id"].is_unique
    assert table["prompt"].is_unique
    halves = table.groupby(["kind", "copies"])["split"].value_counts().unstack()
    assert (halves["validation"] - halves["test"]).abs().max() <= 1


def test_a_template_group_shares_its_scene():
    images, table = dataset.memorized(SMALL)
    rows = np.flatnonzero(table["group"] == "template-0")
    sky = images[rows, :12].astype(int)  # above every object but a balloon or a kite
    grounded = ~table["object"].iloc[rows].isin(["balloon", "kite"]).to_numpy()
    assert np.abs(sky[grounded] - sky[grounded][:1]).max() <= 2
    assert len({images[r].tobytes() for r in rows}) == len(rows)


def test_same_caption_groups_hold_the_caption_fixed():
    images, groups = dataset.calibration_set(SMALL)
    assert images.shape[0] == 12
    assert np.bincount(groups).tolist() == [4, 4, 4]
