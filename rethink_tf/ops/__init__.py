"""Pure functions on tensors: no variables, no gin, no summaries."""
