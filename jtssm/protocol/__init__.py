"""What a method is, and what a mesh must know of it: the words in which methods are written."""

from jtssm.protocol.declared import Declared, MatrixProduct, Move, Run
from jtssm.protocol.exchange import Exchange
from jtssm.protocol.info import Info
from jtssm.protocol.method import Method
from jtssm.protocol.program import Batch, Program, Stages
from jtssm.protocol.settings import Settings, recorded
from jtssm.protocol.stages import StageProgram
from jtssm.protocol.whole import WholeProgram
from jtssm.protocol.workers import Meeting, Model, WorkerProgram

__all__ = [
    "Batch",
    "Declared",
    "Exchange",
    "Info",
    "MatrixProduct",
    "Meeting",
    "Method",
    "Model",
    "Move",
    "Program",
    "Run",
    "Settings",
    "StageProgram",
    "Stages",
    "WholeProgram",
    "WorkerProgram",
    "recorded",
]
