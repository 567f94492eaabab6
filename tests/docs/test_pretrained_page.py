"""The page about pretrained weights: its code runs as it stands, and gives what the models gave."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint
from flax import linen, serialization
from jax import lax

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to" / "pretrained.md"
X = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)


class CNN(linen.Module):
    """The page's model."""

    @linen.compact
    def __call__(self, x):
        x = linen.relu(linen.Conv(4, (3, 3), name="stem")(x))
        x = linen.BatchNorm(use_running_average=True, name="norm")(x)
        return linen.Dense(10, name="head")(x.mean(axis=(1, 2)))


def drawn(tree):
    """The same shapes with positive numbers of no pattern."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda a: jnp.asarray(rng.uniform(0.1, 1, a.shape), jnp.float32), tree)


def write_safetensors(path, arrays):
    """The format as its documentation has it."""
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, a in arrays.items():
        offsets = [len(data), len(data) + a.nbytes]
        header[name] = {"dtype": "F32", "shape": list(a.shape), "data_offsets": offsets}
        data += a.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def torch_like():
    """Arrays named and laid out as PyTorch does."""
    rng = np.random.default_rng(2)
    four = ("conv.bias", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
    shapes = {"conv.weight": (4, 3, 3, 3), **dict.fromkeys(four, (4,))}
    shapes |= {"fc.weight": (10, 4), "fc.bias": (10,)}
    return {n: rng.uniform(0.1, 1, shape).astype(np.float32) for n, shape in shapes.items()}


def by_torch(t, x):
    """What such a model gives for images [n, height, width, channels], in PyTorch's layout."""
    z = lax.conv(x.transpose(0, 3, 1, 2), t["conv.weight"], (1, 1), "SAME")
    of = lambda name: t[name][None, :, None, None]
    z = (z + of("conv.bias") - of("bn.running_mean")) / np.sqrt(of("bn.running_var") + 1e-5)
    z = np.maximum(z * of("bn.weight") + of("bn.bias"), 0).mean(axis=(2, 3))
    return z @ t["fc.weight"].T + t["fc.bias"]


def test_its_code_runs_and_gives_what_the_models_gave(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    variables = drawn(CNN().init(jax.random.key(0), X))
    Path("model.msgpack").write_bytes(serialization.to_bytes(variables))
    with orbax.checkpoint.StandardCheckpointer() as writer:
        writer.save(tmp_path / "orbax", variables)
    write_safetensors(Path("model.safetensors"), torch_like())

    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    code = "\n".join(blocks).replace("/path/to/checkpoint", str(tmp_path / "orbax"))
    page = {"__name__": "page"}
    exec(code, page)

    jax.tree.map(np.testing.assert_array_equal, page["variables"], variables)  # orbax's, the last
    net = page["net"]
    params = net.init(jax.random.key(5))
    params[-1] = {"params": variables["params"]["head"]}
    np.testing.assert_allclose(net.apply(params, X), CNN().apply(variables, X), rtol=1e-5)

    other = page["from_torch"]
    got = other.apply(other.init(jax.random.key(5)), X)
    np.testing.assert_allclose(got, by_torch(torch_like(), X), rtol=1e-4)
