"""A training loop of one's own with optax, and what changes in it to train by gsADMM on a mesh.

    python -m examples.optax_loop

`with_optax` is the loop as it was: a schedule, an optimizer, minibatches, a log line now and then.
`with_gsadmm` is the same loop with jtssm's `init`, `step` and `place` where the update stood; schedule,
minibatches and log stay the user's. The network is cut into two subnetworks, one on each device.
"""

import jax
import numpy as np
import optax

import jtssm
from jtssm import data, sharding, solvers

EPOCHS, BATCH = 12, 50
NET = jtssm.mlp([64, 96, 96, 10])


def schedule(steps):
    """The user's learning rate."""
    return optax.warmup_cosine_decay_schedule(0.0, 3e-3, steps // 10, steps)


def minibatches(train, seed):
    """The user's minibatches: every epoch in a new order."""
    rng = np.random.default_rng(seed)
    for _ in range(EPOCHS):
        order = rng.permutation(len(train.y))[: len(train.y) // BATCH * BATCH]
        for rows in order.reshape(-1, BATCH):
            yield train.x[rows], train.y[rows]


class Log:
    """The user's log: every hundred steps the mean loss since the line before."""

    def __init__(self, rate):
        self.rate, self.losses, self.lines = rate, [], []

    def __call__(self, step, loss):
        # waits for the step: virtual devices of a CPU want it so; nan while a pipeline fills
        self.losses.append(float(loss))
        if step % 100 == 99:
            line = {
                "step": step + 1,
                "loss": np.nanmean(self.losses),
                "rate": float(self.rate(step)),
            }
            self.lines.append(line)
            self.losses.clear()
            print("step {step:4d}  loss {loss:.3f}  rate {rate:.1e}".format(**line))


def accuracy(outputs, y):
    return float((np.asarray(outputs).argmax(axis=1) == y).mean())


def with_optax(train, test, log, rate):
    """The loop as it was."""
    optimizer = optax.adam(rate)
    params = NET.init(jax.random.key(0))
    opt_state = optimizer.init(params)

    @jax.jit
    def update(params, opt_state, x, y):
        def loss(params):
            outputs = NET.apply(params, x)
            return optax.losses.softmax_cross_entropy_with_integer_labels(outputs, y).mean()

        value, gradient = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    for step, (x, y) in enumerate(minibatches(train, seed=0)):
        params, opt_state, loss = update(params, opt_state, x, y)
        log(step, loss)
    return accuracy(NET.apply(params, test.x), test.y)


def with_gsadmm(train, test, log, rate):
    """The same loop: three lines make the method, `update` becomes `step`."""
    method = solvers.gsadmm(NET, subnets=2, optimizer=optax.adam(rate), batch_size=BATCH)
    method = sharding.place(method, sharding.make_mesh(subnet=2))
    state = method.init(jax.random.key(0), *train)
    update = jax.jit(method.step, donate_argnums=0)

    for step, (x, y) in enumerate(minibatches(train, seed=0)):
        state, info = update(state, x, y)
        log(step, info.loss)
    state = jax.jit(method.drain)(state)  # the minibatches in flight
    return accuracy(method.predict(state, test.x), test.y)


def main():
    """Both loops; their test accuracies and logs."""
    train, _, test = data.load("digits", flat=True)
    rate = schedule(EPOCHS * (len(train.y) // BATCH))
    found = {}
    for name, loop in (("optax", with_optax), ("gsadmm", with_gsadmm)):
        log = Log(rate)
        found[name] = {"accuracy": loop(train, test, log, rate), "log": log.lines}
        print(f"{name}: test accuracy {found[name]['accuracy']:.3f}\n")
    return found


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 2)
    main()
