"""Features mixed along a graph, against the matrices of the formula."""

import numpy as np
import pytest

from jtssm.data import synthetic
from jtssm.data.graphs import hops


def test_hops_are_powers_of_the_normalised_adjacency():
    rng = np.random.default_rng(0)
    joined = np.triu(rng.random((12, 12)) < 0.3, k=1)
    edges = np.argwhere(joined)
    flipped = np.where(rng.random((len(edges), 1)) < 0.5, edges, edges[:, ::-1])
    x = rng.normal(size=(12, 3))
    whole = joined + joined.T + np.eye(12)
    scale = np.diag(whole.sum(axis=1) ** -0.5)
    mix = scale @ whole @ scale
    expected = np.hstack([x, mix @ x, mix @ mix @ x])
    np.testing.assert_allclose(hops(x, flipped, 2), expected, atol=1e-12)
    np.testing.assert_array_equal(hops(x, edges, 0), x)
    assert hops(x.astype(np.float32), edges, 1).dtype == np.float32
    alone = hops(x, np.zeros((0, 2), int), 1)
    np.testing.assert_array_equal(alone, np.hstack([x, x]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"edges": np.array([[0, 4]])}, r"edges: expected nodes 0 to 3; got 0 to 4"),
        ({"edges": np.array([[0, 1], [1, 0]])}, r"edges: expected each undirected edge once"),
        ({"edges": np.array([[2, 2]])}, r"edges: expected each undirected edge once"),
        ({"edges": np.array([[0.0, 1.0]])}, r"edges: expected integers \[edges, 2\]; got float64"),
        ({"edges": np.array([0, 1])}, r"edges: expected integers \[edges, 2\]; got int64 of shape"),
        ({"x": np.zeros(4)}, r"x: expected features \[nodes, features\]; got shape \(4,\)"),
        ({"most": -1}, r"most: expected an integer of at least 0; got -1"),
    ],
)
def test_bad_graphs_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        hops(**{"x": np.zeros((4, 2)), "edges": np.array([[0, 1]]), "most": 1} | given)


def test_a_block_graph_has_the_degree_and_the_classes_it_says():
    x, y, edges = synthetic.block_graph(0)
    assert (x.shape, x.dtype, y.dtype) == ((2708, 500), np.float32, np.int32)
    assert set(np.unique(x)) == {0.0, 1.0}
    assert np.ptp(np.bincount(y)) <= 1
    assert abs(2 * len(edges) / 2708 - 4) < 0.15
    assert abs((y[edges[:, 0]] == y[edges[:, 1]]).mean() - 0.8) < 0.03
    assert (edges[:, 0] < edges[:, 1]).all()
    again, other = synthetic.block_graph(0)[2], synthetic.block_graph(1)[2]
    assert np.array_equal(again, edges)
    assert not np.array_equal(other[:50], edges[:50])


def test_words_and_edges_tell_classes_together_better_than_words_alone():
    """The nearest mean of 20 labelled nodes a class, of words and of words mixed twice."""
    x, y, edges = synthetic.block_graph(0)
    right = []
    for features in (x, hops(x, edges, 2)[:, -500:]):
        known = np.concatenate([np.flatnonzero(y == k)[:20] for k in range(7)])
        means = np.stack([features[known][y[known] == k].mean(axis=0) for k in range(7)])
        away = ((features[:, None, :] - means[None]) ** 2).sum(axis=-1)
        right.append((away.argmin(axis=1) == y).mean())
    assert 0.3 < right[0] < 0.8
    assert right[1] > right[0] + 0.1
