"""Training on files that do not fit in memory: `fit` on an iterator of batches.

    python -m examples.stream

`Files` reads one file after the other, in a new order at each pass; whatever `iter` starts anew will do.
The order depends on the number of the pass alone (`set_epoch`), so that a run with checkpoints may be
broken off: it goes on with the sample that would have come next.
With grain (`pip install grain`) the samples are read by index, shuffled over all files, in threads.
"""

import tempfile
from pathlib import Path

import jax
import numpy as np
import optax

import jtssm
from jtssm import data, solvers

EPOCHS, FILES = 10, 6


class Files:
    """Batches [samples of a file, ...] from npz files, shuffled within each; one is open at a time."""

    def __init__(self, paths, seed=0):
        self.paths, self.seed, self.epoch, self.reads = paths, seed, 0, 0

    def set_epoch(self, epoch):
        """`fit` tells the number of the pass that begins."""
        self.epoch = epoch

    def __iter__(self):
        rng = np.random.default_rng((self.seed, self.epoch))
        for i in rng.permutation(len(self.paths)):
            with np.load(self.paths[i]) as file:
                x, y = file["x"], file["y"]
            self.reads += 1
            order = rng.permutation(len(y))
            yield x[order], y[order]


class Samples:
    """What grain reads by index: sample i of files of equal length, mapped into memory page by page."""

    def __init__(self, paths):
        self.files = [(np.load(x, mmap_mode="r"), np.load(y, mmap_mode="r")) for x, y in paths]
        self.each = len(self.files[0][1])

    def __len__(self):
        return self.each * len(self.files)

    def __getitem__(self, i):
        x, y = self.files[i // self.each]
        return np.array(x[i % self.each]), y[i % self.each]


def trained(batches, test):
    """By SGD; gsadmm, gsam, ist, local_sgd and ensemble stream as well."""
    net = jtssm.mlp([64, 96, 96, 10])
    method = solvers.sgd(net, optimizer=optax.adam(2e-3), batch_size=40)
    result = jtssm.fit(
        method,
        batches,
        epochs=EPOCHS,
        key=jax.random.key(0),
        validation=test,
        evaluate_every=EPOCHS,
    )
    last = result.history[-1]
    return {"steps": last["step"], "accuracy": last["validation_accuracy"]}


def from_files(folder, train, test):
    """Files of unequal lengths; an epoch is a pass over all of them."""
    paths = []
    for i, rows in enumerate(np.array_split(np.arange(len(train.y)), [90, 300, 333, 700, 1000])):
        paths.append(folder / f"part{i}.npz")
        np.savez(paths[-1], x=train.x[rows], y=train.y[rows])
    files = Files(paths)
    return trained(files, test) | {"reads": files.reads}


def from_grain(folder, train, test):
    """A grain pipeline; an epoch is a pass over it, in the order that its shuffling gives."""
    import grain

    paths = []
    for i, rows in enumerate(np.split(np.arange(len(train.y)), FILES)):
        paths.append((folder / f"x{i}.npy", folder / f"y{i}.npy"))
        np.save(paths[-1][0], train.x[rows])
        np.save(paths[-1][1], train.y[rows])
    pipeline = grain.MapDataset.source(Samples(paths)).shuffle(seed=0).batch(64)
    return trained(pipeline, test)


def main():
    """Train from files, and from a grain pipeline where grain is installed."""
    train, _, test = data.load("digits", flat=True)
    found = {}
    for name, run in (("files", from_files), ("grain", from_grain)):
        with tempfile.TemporaryDirectory() as folder:
            try:
                found[name] = run(Path(folder), train, test)
            except ImportError:
                print("grain is not installed: pip install grain")
                continue
        print(f"{name}: {found[name]}")
    return found


if __name__ == "__main__":
    main()
