"""DiLoCo, a method of one's own: local SGD whose mean moves by an outer optimizer with momentum.

    gradient <- W - mean of the workers' weights after R local steps;  W <- outer optimizer(W, gradient)

Douillard et al., arXiv 2311.08105. As an argument of the library's own method:
`solvers.local_sgd(outer_optimizer=...)`.  Run: python -m examples.diloco
Or: jtssm train examples.diloco:diloco --workers 4
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jtssm import data, fit, mlp, protocol
from jtssm.solvers import workers as shared


class State(NamedTuple):
    params: list  # W, one tree a layer
    outer: Any  # the outer optimizer's
    opt_state: Any  # [N, ...] the workers' own
    round: jax.Array
    key: jax.Array
    pace: jax.Array


def diloco(net, *, workers: int, optimizer, local_steps: int, batch_size: int, outer_rate=0.7):
    """DiLoCo: as local_sgd, with Nesterov momentum 0.9 and `outer_rate` on the mean's movement."""
    trainer = shared.local(net, optimizer, "cross_entropy", local_steps, batch_size)
    outer = optax.sgd(outer_rate, momentum=0.9, nesterov=True)

    def start(key, params):
        copies = jax.tree.map(lambda a: jnp.broadcast_to(a, (workers, *a.shape)), params)
        pace = jnp.ones((), jax.tree.leaves(params)[0].dtype)
        return State(params, outer.init(params), trainer.fresh(copies, 0), jnp.int32(0), key, pace)

    def step(meeting, state, x, y):
        copies = meeting.copies(state.params)
        params, inner, info = trainer.round(meeting, state, copies, x, y)
        gradient = jax.tree.map(jnp.subtract, state.params, meeting.mean(params))
        updates, moved = outer.update(gradient, state.outer, state.params)
        new = {"params": optax.apply_updates(state.params, updates), "outer": moved}
        return state._replace(opt_state=inner, round=state.round + 1, **new), info

    renewed = lambda meeting, state, x: trainer.estimated(meeting, state.params, x)
    estimate = lambda *given: given[1]._replace(params=renewed(*given))
    forward = lambda meeting, state, x: trainer.predict(meeting, state.params, x)
    lay_out = lambda xp, params: {"params": params}
    model = protocol.Model(net.init, lay_out, start, lambda state: state.params, workers)
    kinds = {"params": (), "outer": (), "opt_state": ("subnet",)}
    moves = lambda samples: (trainer.mean_move(), trainer.gradient_move())
    do = {"step": step, "forward": forward, "estimate": estimate}
    return trainer.program("diloco", workers, kinds, model, moves, **do).on_one_device()


if __name__ == "__main__":
    train, ways = data.load("digits", flat=True).train, {"local_steps": 10, "batch_size": 16}
    method = diloco(mlp([64, 64, 10]), workers=4, optimizer=optax.adamw(1e-3), **ways)
    print(fit(method, (train.x, train.y), epochs=20, key=jax.random.key(0)).history[-1])
