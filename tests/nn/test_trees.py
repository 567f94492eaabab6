"""Networks whose samples, and what layers hand each other, are trees of arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen

import jtssm
from jtssm import nn, solvers
from jtssm.nn.boundary import merge, partition
from jtssm.nn.inputs import as_input
from tests.tree_networks import ENCODER, Embed, Mixed, encoder, images, sentences, unet

SGD = {"optimizer": optax.sgd(0.1), "batch_size": 4}
NET = encoder()


def shapes(tree):
    return jax.tree.map(lambda a: (a.shape, a.dtype.name), tree)


def test_a_network_knows_the_trees_between_its_layers():
    ids, mask, h = ((4,), "int32"), ((4,), "bool"), ((4, 4), "float32")
    assert [shapes(tree) for tree in NET.boundaries] == [
        {"ids": ids, "mask": mask},
        {"h": h, "mask": mask},
        {"h": h, "mask": mask},
        ((3,), "float32"),
    ]
    assert NET.outputs == NET.shapes[-1] == (3,)
    assert [shapes(tree) for tree in unet().boundaries[1:3]] == [
        (((2, 2, 3), "float32"), ((4, 4, 3), "float32"))
    ] * 2
    told = repr(NET).splitlines()
    assert told[0].endswith("samples {'ids': int32 (4,), 'mask': bool (4,)}")
    assert "Mixed   {'h': float32 (4, 4), 'mask': bool (4,)}  20" in told[2]


def test_costs_are_those_of_the_products_whatever_travels_with_them():
    assert NET.costs() == [0, 4 * 4 * 4, 4 * 3]


def test_samples_keep_their_kinds_and_get_the_dtypes_of_the_network():
    x, _ = sentences(2)
    wide = {"ids": x["ids"].astype(np.int64), "mask": x["mask"]}
    taken = as_input(NET, wide)
    assert shapes(taken) == {"ids": ((2, 4), "int32"), "mask": ((2, 4), "bool")}
    np.testing.assert_array_equal(taken["ids"], x["ids"])


def test_a_tree_is_the_sum_of_its_floats_and_the_rest():
    tree = {"h": jnp.ones(2), "at": (jnp.arange(2), None), "mask": jnp.ones(2, bool)}
    floats, rest = partition(tree)
    assert [len(jax.tree.leaves(part)) for part in (floats, rest)] == [1, 2]
    assert merge(floats, rest)["at"][1] is None
    assert jax.tree.structure(merge(floats, rest)) == jax.tree.structure(tree)


def test_single_integers_stay_integers():
    net = nn.layers([lambda x: jax.nn.one_hot(x, 5).sum(axis=1)], jnp.zeros((1, 3), jnp.int32))
    assert net.shapes == ((3,), (5,))
    large = np.array([[2**24 + 1, 1, 1]])
    assert as_input(net, large).dtype == jnp.int32
    assert int(as_input(net, large)[0, 0]) == 2**24 + 1


class Averaged(linen.Module):
    """Takes a mean over the samples, of the floats of a tree."""

    @linen.compact
    def __call__(self, x):
        return {"h": x["h"] - x["h"].mean(axis=0, keepdims=True), "mask": x["mask"]}


def ids_only(x):
    return {"ids": x["ids"], "mask": x["mask"]}


SAMPLE = {"ids": jnp.zeros((1, 4), jnp.int32), "mask": jnp.ones((1, 4), bool)}
LINEN = lambda *modules: nn.from_linen(modules, SAMPLE)
X, Y = sentences(4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LINEN(Embed(), Averaged()), r"module 1, Averaged.* treats samples one by one"),
        (lambda: LINEN(Embed(), Mixed()), r"one array of floats from the last.*\{'h': float32"),
        (
            lambda: nn.sequence([*NET.layers[:2], nn.dense(3)], NET.boundaries[0]),
            r"layers\[2\]: expected one array before 'dense 3'; got a tree, \{'h': float32 \(4, 4\)",
        ),
        (
            lambda: nn.from_linen([Embed()], {"ids": SAMPLE["ids"], "mask": np.ones((2, 4), bool)}),
            r"sample_input: expected \[samples, ...\].* as many in each",
        ),
        (lambda: LINEN(lambda x: x["ids"]), r"one array of floats from the last.*int32 \(4,\)"),
        (lambda: solvers.pdadmm(NET), r"net: expected one array before each layer for pdadmm"),
        (
            lambda: solvers.ist(NET, subnets=2, local_steps=1, **SGD),
            r"net: expected one array before each layer for ist; got a tree, \{'ids'",
        ),
        (
            lambda: solvers.gsadmm(NET, subnets=2, schedule="stored", **SGD),
            r"one array before each layer for schedule='stored'",
        ),
        (
            lambda: solvers.gsadmm(LINEN(ids_only, *ENCODER), cuts=[1], **SGD),
            r"cuts: expected floats over each cut",
        ),
        (lambda: step(X["ids"]), r"x: expected a tree of the network's structure"),
        (lambda: step({"ids": X["ids"]}), r"x: expected a tree of the network's structure"),
        (lambda: step(X | {"ids": X["ids"][:, :3]}), r"x\['ids'\]: expected \[4, 4\]; got shape"),
        (lambda: step(X | {"mask": X["mask"][:3]}), r"x\['mask'\]: expected \[4, 4\]; got shape"),
        (lambda: step(X | {"ids": X["ids"] * 1.0}), r"x\['ids'\]: expected integers"),
        (lambda: step(X | {"mask": X["ids"]}), r"x\['mask'\]: expected booleans.* != 0"),
        (lambda: step(X | {"ids": [[1, 2, 3, 4]] * 4}), r"x.*expected an array of numbers"),
        (
            lambda: step(X | {"ids": X["ids"].astype(np.int64) + 2**31}),
            r"x\['ids'\]: expected integers that int32 holds",
        ),
        (lambda: mlp_step(X), r"x: expected an array of numbers"),
        (
            lambda: solvers.sgd(unet(), **SGD).init(
                jax.random.key(0), images(4)[0] * np.nan, images(4)[1]
            ),
            r"x: expected finite numbers",
        ),
    ],
)
def test_misuse_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def step(x):
    return solvers.sgd(NET, **SGD).init(jax.random.key(0), x, Y)


def mlp_step(x):
    return solvers.sgd(jtssm.mlp([4, 3]), **SGD).init(jax.random.key(0), x, Y)
