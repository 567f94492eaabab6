"""Synthetic images: of their shape, hard for pixels, easy for who looks at directions."""

import numpy as np

from jtssm.data import synthetic


def directions(x):
    """The direction of the strongest frequency of each image, 0 to pi."""
    energy = np.abs(np.fft.fft2(x, axes=(1, 2))).sum(-1)
    energy[:, 0, 0] = 0
    size = x.shape[1]
    where = energy.reshape(len(x), -1).argmax(1)
    row, column = (np.fft.fftfreq(size)[i] for i in np.unravel_index(where, (size, size)))
    return np.arctan2(column, row) % np.pi


def test_gratings_tell_their_class_by_direction_and_not_by_pixels():
    x, y = synthetic.gratings(0, 1000, classes=5)
    assert (x.shape, x.dtype, y.dtype) == ((1000, 32, 32, 3), np.float32, np.int32)
    assert np.bincount(y).tolist() == [200] * 5
    found = np.round(directions(x) / (np.pi / 5)) % 5
    assert (found == y).mean() > 0.95
    means = np.stack([x[:800][y[:800] == k].mean(0) for k in range(5)])
    distances = ((x[800:, None] - means[None]) ** 2).sum((2, 3, 4))
    assert (distances.argmin(1) == y[800:]).mean() < 0.5  # five classes
    assert np.abs(means).mean() < 0.05
    again, other = synthetic.gratings(0, 1000, classes=5)[0], synthetic.gratings(1, 1000, classes=5)
    assert np.array_equal(again, x)
    assert not np.array_equal(other[0], x)
    small, _ = synthetic.gratings(3, 20, size=16, classes=4, noise=0.0)
    assert small.shape == (20, 16, 16, 3)
    assert (np.round(directions(small) / (np.pi / 4)) % 4 == _).mean() > 0.8


def test_baskets_tell_a_favourite_genre_by_no_single_item():
    x, y = synthetic.baskets(0, 6000, items=256, genres=8)
    assert (x.shape, x.dtype, y.dtype, set(y)) == ((6000, 256), np.float32, np.int32, set(range(8)))
    assert set(np.unique(x)) == {0, 1}
    assert 5 < x.sum(axis=1).mean() < 20  # 20 bought, some of them twice
    by_genre = np.stack([x[y == k].mean(axis=0) for k in range(8)])
    popular = np.sort(x.mean(axis=0))
    assert popular[-1] > 5 * popular[128] > 5 * popular[0]
    # an item is of the genre whose customers buy it most; what they buy in all tells the favourite
    genre = by_genre.argmax(axis=0)
    score = np.stack([x[:, genre == k].sum(axis=1) / x[:, genre == k].sum() for k in range(8)])
    assert 0.6 < (score.argmax(axis=0) == y).mean() < 1
    assert by_genre.max() < 0.9
    again, other = (synthetic.baskets(seed, 50, items=256, genres=8)[0] for seed in (0, 1))
    assert not np.array_equal(again, other)
