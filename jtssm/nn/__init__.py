"""What is trained: layers, networks, where they are cut; flax modules and functions as layers."""

from jtssm.nn.adapted import Adapted
from jtssm.nn.architectures import (
    ARCHITECTURES,
    decoder,
    find_architecture,
    resnet,
    resnet50,
    transformer,
    vgg16,
)
from jtssm.nn.blocks import Repeated, repeated
from jtssm.nn.boundary import SampleTree
from jtssm.nn.cuts import BALANCES, Passes, balanced_starts, cut
from jtssm.nn.dropout import Dropout, dropout_layer
from jtssm.nn.images import (
    Convolution,
    MaxPool,
    MeanPool,
    alexnet,
    convnet,
    convolution,
    max_pool,
    mean_pool,
)
from jtssm.nn.interop import from_linen, from_nnx, layers
from jtssm.nn.layer import Layer
from jtssm.nn.network import Network, sequence
from jtssm.nn.norm import NORMALISATIONS
from jtssm.nn.perceptrons import Dense, dense, mlp
from jtssm.nn.residual import Residual, bottleneck
from jtssm.nn.tokens import (
    Attention,
    Embedding,
    MeanToken,
    Perceptron,
    Scores,
    attention,
    embedding,
    mean_token,
    perceptron,
    scores,
)

__all__ = [
    "ARCHITECTURES",
    "BALANCES",
    "NORMALISATIONS",
    "Adapted",
    "Attention",
    "Convolution",
    "Dense",
    "Dropout",
    "Embedding",
    "Layer",
    "MaxPool",
    "MeanPool",
    "MeanToken",
    "Network",
    "Passes",
    "Perceptron",
    "Repeated",
    "Residual",
    "SampleTree",
    "Scores",
    "alexnet",
    "attention",
    "balanced_starts",
    "bottleneck",
    "convnet",
    "convolution",
    "cut",
    "decoder",
    "dense",
    "dropout_layer",
    "embedding",
    "find_architecture",
    "from_linen",
    "from_nnx",
    "layers",
    "max_pool",
    "mean_pool",
    "mean_token",
    "mlp",
    "perceptron",
    "repeated",
    "resnet",
    "resnet50",
    "scores",
    "sequence",
    "transformer",
    "vgg16",
]
