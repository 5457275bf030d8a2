"""Building blocks of the models: normalization and convolution."""
