"""A flax nnx training loop of one's own, and what changes in it to train by gsADMM on a mesh.

    python -m examples.nnx_loop

`Net` is the user's model, `with_nnx` the loop as it was. `with_gsadmm` hands its blocks to
`nn.from_nnx`, trains them in two subnetworks on two devices, and puts what was trained back into
the model: evaluation, saving and the rest go on with the model as ever.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jtssm import data, nn, sharding, solvers

EPOCHS, BATCH = 10, 50


class Block(nnx.Module):
    """A normalised layer of neurons with a shortcut."""

    def __init__(self, width, rngs):
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.linear = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x):
        return x + jax.nn.relu(self.linear(self.norm(x)))


class Net(nnx.Module):
    """The user's model: a chain of blocks."""

    def __init__(self, rngs):
        ends = (nnx.Linear(64, 64, rngs=rngs), nnx.Linear(64, 10, rngs=rngs))
        self.blocks = nnx.List([ends[0], *(Block(64, rngs) for _ in range(2)), ends[1]])

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def minibatches(train, seed):
    rng = np.random.default_rng(seed)
    for _ in range(EPOCHS):
        order = rng.permutation(len(train.y))[: len(train.y) // BATCH * BATCH]
        for rows in order.reshape(-1, BATCH):
            yield train.x[rows], train.y[rows]


def accuracy(model, test):
    """The user's evaluation: of the model itself."""
    return float((jnp.argmax(model(test.x), axis=1) == test.y).mean())


def with_nnx(model, train, optimizer):
    """The loop as it was."""
    optimizer = nnx.Optimizer(model, optimizer, wrt=nnx.Param)

    @nnx.jit
    def update(model, optimizer, x, y):
        def loss(model):
            return optax.losses.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

        value, gradient = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradient)
        return value

    return [float(update(model, optimizer, x, y)) for x, y in minibatches(train, seed=0)]


def with_gsadmm(model, train, optimizer):
    """The same loop; the trained blocks go back into the model."""
    net = nn.from_nnx(list(model.blocks))
    method = solvers.gsadmm(net, subnets=2, optimizer=optimizer, batch_size=BATCH)
    method = sharding.place(method, sharding.make_mesh(subnet=2))
    state = method.init(jax.random.key(0), *train)
    update = jax.jit(method.step, donate_argnums=0)

    losses = []
    for x, y in minibatches(train, seed=0):
        state, info = update(state, x, y)
        losses.append(float(info.loss))  # waits for the step: virtual devices of a CPU want it so
    state = jax.jit(method.drain)(state)  # the minibatches in flight
    for block, trained in zip(model.blocks, net.modules(method.params(state)), strict=True):
        nnx.update(block, nnx.state(trained))
    return losses


def main():
    """Both loops, from the same model; its accuracy on the test set before and after."""
    train, _, test = data.load("digits", flat=True)
    steps = EPOCHS * (len(train.y) // BATCH)
    rate = optax.warmup_cosine_decay_schedule(0.0, 2e-3, steps // 10, steps)
    found = {}
    for name, loop in (("nnx", with_nnx), ("gsadmm", with_gsadmm)):
        model = Net(nnx.Rngs(0))
        before = accuracy(model, test)
        losses = loop(model, train, optax.adam(rate))
        last = float(np.mean(losses[-50:]))
        found[name] = {"before": before, "after": accuracy(model, test), "loss": last}
        print(
            "{name}: test accuracy {before:.3f}, trained {after:.3f}".format(
                name=name, **found[name]
            )
        )
    return found


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 2)
    main()
