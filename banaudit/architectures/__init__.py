"""Weights -> network: the architecture recognised from keys and shapes, and loaded strictly."""

from banaudit.architectures.base import SplitModel, SplitNetwork, WrappedNetwork
from banaudit.architectures.family import Recognition
from banaudit.architectures.final_linear import FinalLinearSplit, OutputSplit, split_module
from banaudit.architectures.outputs import Outputs, recognise_outputs
from banaudit.architectures.recognise import (
    LoadedNetwork,
    count_batch_norms,
    list_architectures,
    load_network,
    recognise,
)

__all__ = [
    "FinalLinearSplit",
    "LoadedNetwork",
    "OutputSplit",
    "Outputs",
    "Recognition",
    "SplitModel",
    "SplitNetwork",
    "WrappedNetwork",
    "count_batch_norms",
    "list_architectures",
    "load_network",
    "recognise",
    "recognise_outputs",
    "split_module",
]
