"""Published networks, at their full sizes unless told otherwise.

A residual block, or half of a transformer's, is one layer (`jtssm.nn.residual`, `jtssm.nn.tokens`): a
network is cut, and its layers' forms on a grid are chosen, between blocks. Blocks of equal shape are one
and the same `Layer`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from difflib import get_close_matches

import jax

from jtssm import checks
from jtssm.nn import network, perceptrons
from jtssm.nn.blocks import repeated
from jtssm.nn.images import alexnet, convolution, max_pool, mean_pool
from jtssm.nn.layer import Layer, Shape
from jtssm.nn.network import Network
from jtssm.nn.norm import NORMALISATIONS
from jtssm.nn.perceptrons import dense
from jtssm.nn.residual import bottleneck
from jtssm.nn.tokens import attention, embedding, mean_token, perceptron, scores

MOST_BLOCKS = 10_000  # each is a layer of its own in a program


def vgg16(classes: int = 1000, *, size: int = 224, divide: int = 1) -> Network:
    """VGG-16 (Simonyan, Zisserman 2014, arXiv 1409.1556, configuration D), without its dropout.

    Args:
      classes: outputs.
      size: height and width of an image, at least 32.
      divide: all widths and channels are divided by this, for small machines: 1, 2, 4, .. 64.

    Raises:
      ValueError: a `divide` that does not divide the widths, images too small for the five pools.
    """
    divide = checks.divides("divide", divide, 64, "which divides all of VGG-16's widths but")
    (size,) = checks.count(size=size)
    stages = [(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]
    layers: list[Layer] = []
    for channels, count in stages:
        layers += [convolution(channels // divide, 3, 1, "SAME", jax.nn.relu)] * count
        layers.append(max_pool(2))
    layers += [dense(4096 // divide, jax.nn.relu)] * 2
    return network.sequence([*layers, dense(classes)], (size, size, 3))


def resnet50(classes: int = 1000, *, size: int = 224, normalisation: str = "batch") -> Network:
    """ResNet-50 (He, Zhang, Ren, Sun 2015, arXiv 1512.03385); see `resnet`."""
    return resnet((3, 4, 6, 3), classes, size=size, normalisation=normalisation)


def resnet(
    blocks: Sequence[int] = (3, 4, 6, 3),
    classes: int = 1000,
    *,
    size: int = 224,
    channels: int = 64,
    normalisation: str = "batch",
) -> Network:
    """A residual network of bottleneck blocks; the stride stands at the 3 x 3 convolution ("v1.5").

    Padding is `nn.convolution`'s "SAME": the odd pixel at the end.

    Args:
      blocks: of each stage; the first block of every stage but the first halves height and width.
      classes: outputs.
      size: height and width of an image.
      channels: of the stem; the blocks of stage s have channels * 2^s inside and 4 times that outside.
      normalisation: "batch", "running" or "layer" (`jtssm.nn.norm`), of every convolution.

    Raises:
      ValueError: no stage or numbers below 1, an unknown normalisation.
    """
    blocks = checks.counts("blocks", blocks, "(3, 4)")
    channels, size = checks.count(channels=channels, size=size)
    _few("blocks", sum(blocks))
    checks.one_of("normalisation", normalisation, list(NORMALISATIONS))
    layers = [
        convolution(channels, 7, 2, "SAME", jax.nn.relu, normalisation),
        max_pool(3, 2, "SAME"),
    ]
    for stage, count in enumerate(blocks):
        inner = channels * 2**stage
        layers.append(bottleneck(inner, 1 if stage == 0 else 2, normalisation, widen=True))
        layers += [bottleneck(inner, 1, normalisation)] * (count - 1)
    shape: Shape = (size, size, 3)
    for layer in layers:
        shape = layer.shape(shape)
    return network.sequence([*layers, mean_pool(shape[0]), dense(classes)], (size, size, 3))


def _few(name: str, num: int) -> None:
    if num > MOST_BLOCKS:
        raise ValueError(f"{name}: expected at most {MOST_BLOCKS} of them; got {num}")


def transformer(
    blocks: int = 12,
    *,
    width: int = 768,
    heads: int = 12,
    sequence: int = 512,
    hidden: int | None = None,
    classes: int = 1000,
    together: int = 1,
) -> Network:
    """A transformer encoder (Vaswani et al. 2017, arXiv 1706.03762) that classifies sequences.

    Samples are embedded tokens [sequence, width]. A block is two layers, x + attention(norm(x)) and
    x + perceptron(norm(x)): the norm stands before (Xiong et al. 2020, arXiv 2002.04745). Then the mean
    over the normalised tokens, and a dense layer.

    Args:
      blocks: how many.
      width: of a token.
      heads: of the attention, which divide the width.
      sequence: tokens of a sample.
      hidden: width inside the perceptron; None: 4 * width.
      classes: outputs.
      together: of so many blocks one layer is made (`nn.repeated`), whose program is compiled once: of
        deep networks, which are then cut between such layers alone, and have no "paired" form.

    Raises:
      ValueError: numbers below 1, heads that do not divide the width, together not the blocks.
    """
    blocks, width, sequence = checks.count(blocks=blocks, width=width, sequence=sequence)
    _few("blocks", blocks)
    (hidden,) = checks.count(hidden=4 * width if hidden is None else hidden)
    inner = _blocks([attention(width, heads), perceptron(width, hidden)], blocks, together)
    return network.sequence([*inner, mean_token(width), dense(classes)], (sequence, width))


def decoder(
    blocks: int = 12,
    *,
    width: int = 768,
    heads: int = 12,
    sequence: int = 1024,
    hidden: int | None = None,
    vocabulary: int = 50257,
    together: int = 1,
) -> Network:
    """A decoder-only transformer (Radford et al. 2019, GPT-2, by default its smallest): a language model.

    Samples are numbers of words [sequence]; its outputs [sequence, vocabulary] are scores of the word
    after each, from it and those before it. Embedded words and places, the blocks of `transformer` with
    causal attention, a norm and a dense layer of its own: not the transposed table of words, which
    would lie in the first and in the last subnetwork. Its loss takes labels [samples, sequence].

    Args:
      blocks: how many.
      width: of a token.
      heads: of the attention, which divide the width.
      sequence: words of a sample.
      hidden: width inside the perceptron; None: 4 * width.
      vocabulary: how many words there are.
      together: of so many blocks one layer is made (`nn.repeated`), whose program is compiled once: of
        deep networks, which are then cut between such layers alone, and have no "paired" form.

    Raises:
      ValueError: numbers below 1, heads that do not divide the width, together not the blocks.
    """
    blocks, width, sequence = checks.count(blocks=blocks, width=width, sequence=sequence)
    _few("blocks", blocks)
    (hidden,) = checks.count(hidden=4 * width if hidden is None else hidden)
    inner = _blocks(
        [attention(width, heads, causal=True), perceptron(width, hidden)], blocks, together
    )
    ends = embedding(vocabulary, width), scores(width, vocabulary)
    return network.sequence([ends[0], *inner, ends[1]], (sequence,))


def _blocks(pair: list[Layer], blocks: int, together: int) -> list[Layer]:
    """The layers of so many blocks of two, or of `together` of them one layer."""
    together = checks.divides("together", together, blocks, "blocks")
    return pair * blocks if together == 1 else [repeated(pair, together)] * (blocks // together)


ARCHITECTURES: dict[str, Callable[[], Network]] = {
    "alexnet": alexnet,
    "decoder": decoder,
    "mlp": lambda: perceptrons.mlp([784, 4096, 4096, 4096, 10]),
    "resnet50": resnet50,
    "transformer": transformer,
    "vgg16": vgg16,
}


def find_architecture(name: str) -> Callable[[], Network]:
    """What builds a published network, by its name.

    Raises:
      ValueError: an unknown name, with the nearest one that is known.
    """
    if isinstance(name, str) and name in ARCHITECTURES:
        return ARCHITECTURES[name]
    near = get_close_matches(str(name), ARCHITECTURES, n=1, cutoff=0.0)
    raise ValueError(
        f"architecture: expected one of {sorted(ARCHITECTURES)}; got {name!r}: is {near[0]!r} meant?"
    )
