"""Detectors trained from random weights, after "Rethinking ImageNet Pre-Training"."""

import importlib

__version__ = "0.1.0"


def __getattr__(name):
    """Returns `load` and `load_weights`, which need TensorFlow, when they are first asked for."""
    if name in ("load", "load_weights"):
        return getattr(importlib.import_module("rethink_tf.loading"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
