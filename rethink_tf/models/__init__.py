"""Backbones, pyramid, heads, and the detector that wires them."""
