"""Distances, their intervals, paths and maps, against cases made by hand."""

import math

import numpy as np
import pytest
import torch

from dori.errors import DoriError
from dori.locality import distances as d
from dori.locality import maps

TRIANGLE = torch.tensor([[0.0, 0], [3, 4], [6, 8]])  # 5 apart, 5 apart, 10 apart


def gaussians(n, *shape, seed=0):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


def test_distances_of_three_points_on_a_line():
    matrix = d.pairwise(TRIANGLE)
    assert matrix.tolist() == [[0, 5, 10], [5, 0, 5], [10, 5, 0]]
    assert d.pairs(matrix).tolist() == [5, 10, 5]


def test_cosine_distance_is_one_minus_the_cosine():
    matrix = d.pairwise(torch.tensor([[2.0, 0], [0, 5], [-1, 0], [3, 3], [0, 0]]), "cosine")
    assert matrix[0, :4].tolist() == pytest.approx([0, 1, 2, 1 - math.sqrt(0.5)])
    assert matrix[4].isnan().all()  # zeros have no direction


def test_spread_of_gaussian_embeddings_is_what_theory_says():
    """Independent N(0, I) of 77 x 768 numbers lie sqrt(2 * 77 * 768) = 343.9 apart."""
    assert d.pairs(d.pairwise(gaussians(12, 77, 768))).mean() == pytest.approx(343.9, rel=0.005)


def test_equal_vectors_are_exactly_0_apart():
    same = gaussians(1, 77, 768).expand(40, -1, -1)  # from 26 vectors on, torch takes a shortcut unless told
    assert d.pairwise(same).max() == 0
    assert d.pairwise(same, "cosine").abs().max() < 1e-15


def test_distances_between_two_sets():
    assert d.between(TRIANGLE[:2], TRIANGLE[1:]).tolist() == [[5, 10], [0, 5]]
    with pytest.raises(DoriError, match="'L1'"):
        d.pairwise(TRIANGLE, "L1")


def test_a_vector_and_its_copy_are_no_pair():
    """All are 1 apart: a bootstrap that counted the zeros of drawn twins would leave 1."""
    found = d.spread(1 - np.eye(5), np.mean)
    assert found == (1, 1, 1, 5)


def test_the_interval_of_a_spread_holds_its_value_and_narrows_with_n():
    few, many = (d.spread(d.pairwise(gaussians(n, 3)), resamples=300) for n in (8, 80))
    assert few.low < few.value < few.high
    assert many.high - many.low < few.high - few.low
    assert d.spread(d.pairwise(gaussians(8, 3)), resamples=300) == few


def test_two_vectors_have_a_distance_and_no_interval():
    found = d.spread(d.pairwise(TRIANGLE[:2]))
    assert (found.value, found.n) == (5, 2)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert math.isnan(d.spread(np.zeros((1, 1))).value)


def test_a_spread_of_several_images_takes_pairs_inside_each_and_counts_images():
    images = [1 - np.eye(2), 4 * (1 - np.eye(3))]  # one pair of 1, three of 4
    found = d.spread(images, np.mean)
    assert (found.value, found.n) == (13 / 4, 2)
    assert d.spread(images).value == 4  # the median of 1, 4, 4, 4


def test_the_interval_of_several_images_draws_images():
    """Inside an image all distances are equal: only the draw of images can vary."""
    found = d.spread([1 - np.eye(4), 3 * (1 - np.eye(4))], np.mean)
    assert (found.value, found.low, found.high) == (2, 1, 3)


def test_a_list_of_one_matrix_is_that_matrix():
    matrix = d.pairwise(gaussians(6, 3))
    assert d.spread([matrix], resamples=50) == d.spread(matrix, resamples=50)
    assert d.spread([matrix], resamples=50).n == 6


def test_a_spread_across_takes_pairs_of_different_label_alone():
    matrix = np.array([[0, 1, 6, 8], [1, 0, 6, 8], [6, 6, 0, 3], [8, 8, 3, 0]])
    found = d.spread_across(matrix, list("aabb"))
    assert (found.value, found.n) == (7, 4)
    assert (found.low, found.high) == (6, 8)  # the b of 6 twice, or the b of 8
    assert d.spread_across(matrix, list("aabb"), np.max).value == 8


def test_a_spread_across_needs_two_labels_and_one_for_each():
    assert math.isnan(d.spread_across(1 - np.eye(3), "aaa").value)
    with pytest.raises(DoriError, match="2 labels for 3"):
        d.spread_across(1 - np.eye(3), "ab")


def test_a_ratio_of_spreads():
    found = d.spread_ratio(2 * (1 - np.eye(4)), torch.ones(6, 6) - torch.eye(6))
    assert found == (2, 2, 2, 4)


def test_pairs_of_different_images_do_not_count():
    images = [10 * (1 - np.eye(3)), 10 * (1 - np.eye(3)), 40 * (1 - np.eye(3))]
    found = d.spread_ratio(images, 10 * (1 - np.eye(4)), np.mean)
    assert (found.value, found.n) == (2, 3)
    assert (found.low, found.high) == (1, 4)  # images are drawn: all of 10 to all of 40
    assert d.spread_ratio(images[:2], images, np.mean).value == 0.5


def test_a_ratio_to_a_single_pair_has_no_interval():
    found = d.spread_ratio(1 - np.eye(5), 1 - np.eye(2))
    assert found.value == 1
    assert math.isnan(found.low)
    with pytest.raises(DoriError, match="no matrix"):
        d.spread_ratio([], np.eye(3))


def test_clusters_are_nearer_within_than_between():
    matrix = np.array([[0, 1, 8, 8], [1, 0, 8, 8], [8, 8, 0, 3], [8, 8, 3, 0]])
    found = d.within_over_between(matrix, ["a", "a", "b", "b"], resamples=200)
    assert found.value == 0.25
    assert (found.low, found.high) == (0.125, 0.375)  # a pair of either label, or both
    assert d.within_over_between(1 - np.eye(6), list("aabbcc")) == (1, 1, 1, 6)


def test_no_pairs_of_a_sort_is_undefined():
    assert math.isnan(d.within_over_between(1 - np.eye(3), "aaa").value)
    assert math.isnan(d.within_over_between(1 - np.eye(3), "abc").value)
    with pytest.raises(DoriError, match="2 labels for 3"):
        d.within_over_between(1 - np.eye(3), "ab")


def test_displacement_and_its_share_of_the_starts_spread():
    starts = torch.eye(4) * math.sqrt(2)  # all 2 apart
    ends = starts + torch.tensor([0.0, 0, 0, 1])
    assert d.displacement(starts, ends).tolist() == pytest.approx([1, 1, 1, 1])
    assert d.displacement_share(starts, ends) == pytest.approx((0.5, 0.5, 0.5, 4))
    with pytest.raises(DoriError, match="one each"):
        d.displacement(starts, ends[:2])


def test_moves_that_agree_and_moves_that_do_not():
    starts = gaussians(3, 2)
    same = d.displacement_agreement(starts, starts + torch.tensor([1.0, 2]))
    assert same.value == pytest.approx(1)
    moves = torch.tensor([[1.0, 0], [0, 2], [-3, 0]])  # cosines 0, -1, 0
    assert d.displacement_agreement(torch.zeros(3, 2), moves).value == pytest.approx(-1 / 3)
    moves[1] = 0  # has no direction
    assert d.displacement_agreement(torch.zeros(3, 2), moves).value == pytest.approx(-1)


@pytest.mark.parametrize("path", [maps.straight_path, maps.spherical_path])
def test_paths_begin_and_end_at_their_ends(path):
    a, b = gaussians(2, 5, 3)
    found = path(a, b, [0, 0.3, 1])
    assert found.shape == (3, 5, 3)
    torch.testing.assert_close(found[[0, 2]], torch.stack([a, b]), rtol=1e-6, atol=1e-7)


def test_the_middle_of_a_quarter_turn():
    a, b = torch.tensor([[2.0, 0]]), torch.tensor([[0, 4.0]])
    assert maps.straight_path(a, b, [0.5]).tolist() == [[[1, 2]]]
    torch.testing.assert_close(maps.spherical_path(a, b, [0.5])[0], torch.full((1, 2), 3 * math.sqrt(0.5)))


@pytest.mark.parametrize("factor", [3.0, -1.0, 0.0])
def test_without_a_great_circle_the_path_is_straight(factor):
    a = gaussians(2, 4)
    f = [0, 0.25, 1]
    assert torch.equal(maps.spherical_path(a, factor * a, f), maps.straight_path(a, factor * a, f))


def test_a_map_by_pca_keeps_a_plane_as_it_is():
    flat, turned = gaussians(10, 2), torch.linalg.qr(gaussians(60, 2, seed=1)).Q.T
    found = torch.tensor(maps.plane(flat @ turned))
    np.testing.assert_allclose(d.pairs(d.pairwise(found)), d.pairs(d.pairwise(flat)), rtol=1e-4)
    assert maps.plane_shares(flat @ turned).sum() == pytest.approx(1)


def test_a_map_by_tsne_keeps_far_clusters_apart_and_repeats_itself():
    vectors, labels = gaussians(24, 4, 30), [0] * 12 + [1] * 12
    vectors[12:] += 20
    found = maps.plane(vectors, "t-SNE")
    assert found.shape == (24, 2)
    assert maps.silhouette(torch.tensor(found), labels) > 0.5
    np.testing.assert_array_equal(found, maps.plane(vectors, "t-SNE"))


@pytest.mark.parametrize("method", maps.PLANES)
def test_four_vectors_make_a_map_and_three_do_not(method):
    assert maps.plane(gaussians(4, 9), method).shape == (4, 2)
    with pytest.raises(DoriError, match="4 or more"):
        maps.plane(gaussians(3, 9), method)


def test_a_map_of_another_name_is_refused():
    with pytest.raises(DoriError, match="'UMAP'"):
        maps.plane(gaussians(5, 9), "UMAP")


def test_the_silhouette_of_four_points_by_hand():
    """Pairs (0, 1) and (10, 11): own distance 1, other 10.5 or 9.5."""
    points = torch.tensor([[0.0], [1], [10], [11]])
    assert maps.silhouette(points, "aabb") == pytest.approx(1 - (1 / 10.5 + 1 / 9.5) / 2)
    with pytest.raises(DoriError, match="2 to 3 labels"):
        maps.silhouette(points, "aaaa")
