"""Features of a graph's nodes, mixed along its edges before any network sees them."""

from __future__ import annotations

import numpy as np

from jtssm import checks


def hops(x: np.ndarray, edges: np.ndarray, most: int) -> np.ndarray:
    """[X, A X, A^2 X, ...]: what a perceptron takes instead of a graph.

    A = D^(-1/2) (E + I) D^(-1/2), E the edges and D the degrees of E + I: the features that pdADMM-G
    trains on (arXiv 2105.09837).

    Args:
      x: [nodes, features].
      edges: [edges, 2] numbers of nodes, each undirected edge once, in either order, no node with itself.
      most: K, how far features come: A^K X is the last.

    Returns:
      [nodes, (K + 1) features], in the dtype of x.

    Raises:
      ValueError: x that is no matrix, edges of other nodes than there are, twice, or of a node with
        itself, K below 0.

    Examples:
      >>> import numpy as np
      >>> hops(np.eye(2, dtype=np.float32), np.array([[0, 1]]), 1)
      array([[1. , 0. , 0.5, 0.5],
             [0. , 1. , 0.5, 0.5]], dtype=float32)
    """
    most = checks.natural("most", most)
    x, edges = np.asarray(x), np.asarray(edges)
    if x.ndim != 2:
        raise ValueError(f"x: expected features [nodes, features]; got shape {x.shape}")
    one, other = _ends(edges, len(x))
    degree = 1 + np.bincount(np.concatenate([one, other]), minlength=len(x))
    scale = (degree**-0.5).astype(x.dtype)[:, None]
    found = [x]
    for _ in range(most):
        a = found[-1] * scale
        mixed = a.copy()
        np.add.at(mixed, one, a[other])
        np.add.at(mixed, other, a[one])
        found.append(mixed * scale)
    return np.concatenate(found, axis=1)


def _ends(edges: np.ndarray, nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """The nodes at both ends of each edge."""
    if edges.ndim != 2 or edges.shape[1] != 2 or not np.issubdtype(edges.dtype, np.integer):
        raise ValueError(
            f"edges: expected integers [edges, 2]; got {edges.dtype} of shape {edges.shape}"
        )
    if edges.size and not (edges.min() >= 0 and edges.max() < nodes):
        raise ValueError(
            f"edges: expected nodes 0 to {nodes - 1}; got {edges.min()} to {edges.max()}"
        )
    ordered = np.sort(edges, axis=1)
    if (ordered[:, 0] == ordered[:, 1]).any() or len(np.unique(ordered, axis=0)) < len(edges):
        raise ValueError(
            "edges: expected each undirected edge once, between two nodes; got one twice, or of a "
            "node with itself"
        )
    return edges[:, 0], edges[:, 1]
