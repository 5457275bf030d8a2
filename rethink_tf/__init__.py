"""Detectors trained from random weights, after "Rethinking ImageNet Pre-Training"."""

__version__ = "0.2.0"
