"""A method that trains again compiles nothing, and what one process compiled another reads."""

import contextlib
from collections import Counter

import jax
import numpy as np
import optax
import pytest

import jtssm
from jtssm import sharding, solvers
from jtssm.data import synthetic
from tests.train.short_runs import fit as short_fit

NET = jtssm.mlp([4, 8, 8, 3])
X, Y = synthetic.separable(0, 64, 4, 3, np.float32)
ADAM = optax.adam(1e-2)
COMPILED = "/jax/core/compile/backend_compile_duration"  # from a cache too
HIT, MISS = (f"/jax/compilation_cache/cache_{what}" for what in ("hits", "misses"))


@contextlib.contextmanager
def counted():
    """How often jax compiled inside, and read a program from a folder or not."""
    seen: Counter[str] = Counter()
    tell = lambda event, *_, **__: seen.update([event])
    jax.monitoring.register_event_duration_secs_listener(tell)
    jax.monitoring.register_event_listener(tell)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(tell)
        jax.monitoring.unregister_event_listener(tell)


def trained(method, mesh, seed=0, **options):
    """What fit, predict and evaluate return."""
    key, ways = jax.random.key(seed), {"validation": (X, Y), "progress": False} | options
    result = jtssm.fit(method, (X, Y), epochs=2, key=key, mesh=mesh, **ways)
    return result.predict(X), result.history[-1]["validation_loss"]


def test_training_again_compiles_nothing_and_another_process_reads_what_was_compiled(tmp_path):
    """On a mesh; a method of its own, whose programs are the same, stands for the other process."""
    mesh, folder = sharding.make_mesh(2, 1, 2), tmp_path / "of" / "programs"
    make = lambda: solvers.gsadmm(NET, subnets=2, optimizer=ADAM, batch_size=16)
    method, before = make(), jax.config.jax_compilation_cache_dir
    with counted() as first:
        found = trained(method, mesh, compilation_cache=folder)
    assert first[COMPILED] >= first[MISS] > 3
    with counted() as again:
        other = trained(method, mesh, seed=1)
    assert again[COMPILED] == 0
    assert other[1] != found[1]
    with counted() as elsewhere:
        read = trained(make(), mesh, compilation_cache=str(folder))
    assert elsewhere[HIT] > 3
    assert elsewhere[MISS] == 0
    np.testing.assert_array_equal(read[0], found[0])
    assert jax.config.jax_compilation_cache_dir == before  # of this call alone


CASES = {
    "sgd": lambda: solvers.sgd(NET, optimizer=ADAM, batch_size=16),
    "gsam": lambda: solvers.gsam(NET, subnets=3, optimizer=ADAM, batch_size=16, grid=8),
    "local_sgd": lambda: solvers.local_sgd(
        NET, workers=2, local_steps=2, optimizer=ADAM, batch_size=8
    ),
    "pdadmm": lambda: solvers.pdadmm(NET),
}
MESHES = {"sgd": (1, 2, 2), "gsam": (3, 1, 2), "local_sgd": (2, 1, 2), "pdadmm": (3, 1, 1)}


@pytest.mark.slow
@pytest.mark.parametrize("start", ["drawn", "given"])
@pytest.mark.parametrize("placed", [False, True], ids=["one device", "mesh"])
@pytest.mark.parametrize("name", CASES)
def test_every_kind_of_method_trains_again_without_compiling(name, placed, start, tmp_path):
    method, mesh = CASES[name](), sharding.make_mesh(*MESHES[name]) if placed else None
    params = NET.init(jax.random.key(7), np.float32) if start == "given" else None
    trained(method, mesh, params=params, checkpoint=tmp_path / "first")
    with counted() as again:
        trained(method, mesh, seed=1, params=params, checkpoint=tmp_path / "second")
    assert again[COMPILED] == 0


def test_what_is_no_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for given, message in (
        (3, r"compilation_cache: expected a folder, e\.g\. 'run/compiled', or None; got 3"),
        ("", "compilation_cache: expected a folder"),
        ("gs://bucket/x", "compilation_cache: expected a folder of this machine.* an address"),
        (tmp_path / "file", "compilation_cache: expected a folder; got .*file', a file"),
    ):
        with pytest.raises(ValueError, match=message):
            short_fit(compilation_cache=given)
