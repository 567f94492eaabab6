"""What is trained: layers, networks, where they are cut; flax modules and functions as layers."""

from jtssm.nn.adapted import Adapted
from jtssm.nn.architectures import (
    ARCHITECTURES,
    find_architecture,
    resnet,
    resnet50,
    transformer,
    vgg16,
)
from jtssm.nn.boundary import SampleTree
from jtssm.nn.cuts import balanced_starts, cut
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
from jtssm.nn.tokens import Attention, MeanToken, Perceptron, attention, mean_token, perceptron

__all__ = [
    "ARCHITECTURES",
    "NORMALISATIONS",
    "Adapted",
    "Attention",
    "Convolution",
    "Dense",
    "Dropout",
    "Layer",
    "MaxPool",
    "MeanPool",
    "MeanToken",
    "Network",
    "Perceptron",
    "Residual",
    "SampleTree",
    "alexnet",
    "attention",
    "balanced_starts",
    "bottleneck",
    "convnet",
    "convolution",
    "cut",
    "dense",
    "dropout_layer",
    "find_architecture",
    "from_linen",
    "from_nnx",
    "layers",
    "max_pool",
    "mean_pool",
    "mean_token",
    "mlp",
    "perceptron",
    "resnet",
    "resnet50",
    "sequence",
    "transformer",
    "vgg16",
]
