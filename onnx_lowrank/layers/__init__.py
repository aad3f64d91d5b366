"""Layers: nodes seen as linear maps, and the writer that puts chains in their place."""

from __future__ import annotations

from onnx_lowrank.layers.convolutions import turned
from onnx_lowrank.layers.finder import find_layers, refuse_optimised
from onnx_lowrank.layers.heads import Head, find_heads
from onnx_lowrank.layers.layer import Layer
from onnx_lowrank.layers.placed import Destination, Ineligible, PlacedLayer, destination
from onnx_lowrank.layers.states import initial_zeros, state_products, states_name

__all__ = [
    "Destination",
    "Head",
    "Ineligible",
    "Layer",
    "PlacedLayer",
    "destination",
    "find_heads",
    "find_layers",
    "initial_zeros",
    "refuse_optimised",
    "state_products",
    "states_name",
    "turned",
]
