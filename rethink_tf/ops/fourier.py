"""3x3 convolutions of small square maps as products of their spectra: a fifth of the arithmetic.

The maps of RoIs are small enough for a discrete Fourier transform to be one matrix product, and so
many that the transform of the kernel does not count. A map of S x S is padded to N = S + 1: the
spectrum's convolution is circular, and wraps the result's first row and column, which nobody asked
for, onto the last. The product of two complex numbers takes three of real ones (Karatsuba), whose
sums become rows of the transforms. What is left is a bilinear algorithm in real numbers,

    outputs = synthesis ((analysis inputs) (weights kernel)),

with F = 94 products a map of 7 x 7 and pair of channels, where the sum over the kernel takes 441.

Letters: R maps, S side of a map, C channels, K filters, F products.

Sources: Mathieu et al. 2013, arXiv:1312.5851 (spectra); Lavin and Gray 2015, arXiv:1509.09308
(fast algorithms as three transforms around matrix products).
"""

import functools
import math

import numpy as np
import tensorflow as tf

from rethink_tf.ops import ordering

# Maps that are transformed at a time: their spectra, twice as large as they, are held for a while.
MAPS_AT_A_TIME = 256


def convolve(inputs, kernel):
    """Convolves with zeros around, as `ops.convolution.convolve` does.

    Args:
        inputs: floating [R, S, S, C], S static.
        kernel: [3, 3, C, K], the same dtype.

    Returns:
        [R, S, S, K].
    """
    algorithm = _algorithm(inputs.shape[1])
    weights = _transform_kernel(algorithm, ordering.late(kernel, inputs))
    outputs = []
    for (part,) in _parts(inputs):
        part = ordering.late(part, *outputs[-1:])
        products = tf.matmul(_to_spectrum(algorithm.analysis, part), weights)
        outputs.append(_from_spectrum(algorithm.synthesis, products))
    return tf.concat(outputs, axis=0)


def gradients(inputs, kernel, upstream):
    """Returns the gradients of `convolve` with respect to the inputs and the kernel.

    Args:
        inputs: floating [R, S, S, C], S static.
        kernel: [3, 3, C, K], the same dtype.
        upstream: gradient of the outputs.

    Returns:
        [R, S, S, C] and [3, 3, C, K].
    """
    algorithm = _algorithm(inputs.shape[1])
    weights = _transform_kernel(algorithm, ordering.late(kernel, upstream))
    d_inputs, d_weights = [], 0.0
    for part, d_outputs in _parts(inputs, upstream):
        part, d_outputs = (ordering.late(each, *d_inputs[-1:]) for each in (part, d_outputs))
        d_products = _to_spectrum(algorithm.synthesis.T, d_outputs)
        spectrum = _to_spectrum(algorithm.analysis, part)
        # Added in float32, whatever the inputs are.
        d_weights += tf.cast(tf.matmul(spectrum, d_products, transpose_a=True), tf.float32)
        d_products = ordering.late(d_products, d_weights)
        d_spectrum = tf.matmul(d_products, weights, transpose_b=True)
        d_inputs.append(_from_spectrum(algorithm.analysis.T, d_spectrum))
    d_weights = tf.reshape(d_weights, [len(algorithm.weights), -1])
    d_kernel = tf.matmul(tf.constant(algorithm.weights.T, tf.float32), d_weights)
    d_kernel = tf.reshape(tf.cast(d_kernel, kernel.dtype), kernel.shape)
    return tf.concat(d_inputs, axis=0), d_kernel


class _Algorithm:
    """The three transforms, float64."""

    def __init__(self, side):
        """Derives them.

        Args:
            side: int S.
        """
        size = side + 1
        wave = np.exp(-2j * np.pi * np.outer(np.arange(size), np.arange(-1, size)) / size)
        places, taps = wave[:, 1 : side + 1], wave[:, 2::-1]
        analysis, weights, synthesis = [], [], []
        for row in range(size):
            for column in range(size):
                mirrored = (-row % size, -column % size)
                if mirrored < (row, column):
                    continue  # The spectrum of real numbers is the conjugate there.
                map_wave = np.outer(places[row], places[column]).reshape(-1)
                tap_wave = np.outer(taps[row], taps[column]).reshape(-1)
                inverse = map_wave.conj() / size**2
                if mirrored == (row, column):
                    analysis.append(map_wave.real)
                    weights.append(tap_wave.real)
                    synthesis.append(inverse.real)
                    continue
                # (a + bi)(c + di) from p = ac, q = bd and r = (a + b)(c + d):
                # the real part is p - q, the imaginary one r - p - q.
                analysis += _parts_and_sum(map_wave)
                weights += _parts_and_sum(tap_wave)
                real, imaginary = 2 * inverse.real, 2 * inverse.imag
                synthesis += [real + imaginary, imaginary - real, -imaginary]
        self.analysis = np.stack(analysis)  # [F, S S]
        self.weights = np.stack(weights)  # [F, 9]
        self.synthesis = np.stack(synthesis, axis=1)  # [S S, F]


_algorithm = functools.cache(_Algorithm)


def _parts_and_sum(values):
    return [values.real, values.imag, values.real + values.imag]


def _parts(*values):
    """Yields the rows of tensors of maps, some at a time; all at once where R is not known."""
    count = values[0].shape[0]
    step = MAPS_AT_A_TIME if count else None
    for start in range(0, count or 1, step or 1):
        yield [value[start : start + step] if step else value for value in values]


def _transform_kernel(algorithm, kernel):
    """Returns [F, C, K]."""
    weights = tf.constant(algorithm.weights, kernel.dtype)
    transformed = tf.matmul(weights, tf.reshape(kernel, [9, -1]))
    return tf.reshape(transformed, [len(algorithm.weights), *kernel.shape[2:]])


def _to_spectrum(matrix, maps):
    """Transforms [R, S, S, C] by [F, S S]; returns [F, R, C]."""
    places, channels = matrix.shape[1], maps.shape[-1]
    planes = tf.transpose(tf.reshape(maps, [-1, places, channels]), [1, 0, 2])
    planes = tf.reshape(planes, [places, -1])
    spectrum = tf.matmul(tf.constant(matrix, maps.dtype), planes)
    return tf.reshape(spectrum, [len(matrix), -1, channels])


def _from_spectrum(matrix, spectrum):
    """Transforms [F, R, C] by [S S, F]; returns [R, S, S, C]."""
    channels, side = spectrum.shape[-1], math.isqrt(len(matrix))
    planes = tf.reshape(spectrum, [matrix.shape[1], -1])
    planes = tf.matmul(tf.constant(matrix, spectrum.dtype), planes)
    maps = tf.transpose(tf.reshape(planes, [side * side, -1, channels]), [1, 0, 2])
    return tf.reshape(maps, [-1, side, side, channels])
