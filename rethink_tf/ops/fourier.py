"""3x3 convolutions of small square maps as products of their spectra: a fifth of the arithmetic.

The maps of RoIs are small enough for a discrete Fourier transform to be a few matrix products, and
so many that the transform of the kernel does not count. A map of S x S is padded to N = S + 1: the
spectrum's convolution is circular, and wraps the result's first row and column, which nobody asked
for, onto the last. The product of two complex numbers takes three of real ones (Karatsuba), whose
sums become rows of the transforms. What is left is a bilinear algorithm in real numbers,

    outputs = synthesis ((analysis inputs) (weights kernel)),

with F = 94 products a map of 7 x 7 and pair of channels, where the sum over the kernel takes 441;
of 14 x 14, 337 and 1764. Half of the frequencies of a row are the conjugates of the others. Of the
rest the first (and, if N is even, the last) are real and come with half of the columns; the others
are complex. The two groups are kept apart.

Letters: R maps, S side of a map, N size of the transform, C channels, K filters, F products.

Sources: Mathieu et al. 2013, arXiv:1312.5851 (spectra); Lavin and Gray 2015, arXiv:1509.09308
(fast algorithms as three transforms around matrix products).
"""

import functools
from typing import NamedTuple

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

    def convolve_part(maps):
        spectrum = _to_spectrum(algorithm.analysis, maps)
        products = [tf.matmul(*each) for each in zip(spectrum, weights, strict=True)]
        return _from_spectrum(algorithm.synthesis, products)

    return ordering.in_parts(convolve_part, MAPS_AT_A_TIME, inputs)


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
    d_weights = []

    def differentiate_part(maps, upstream):
        spectrum = _to_spectrum(algorithm.analysis, maps)
        d_products = _to_spectrum(algorithm.synthesis, upstream)
        new, d_spectrum = [], []
        for factors, d_factors, transformed in zip(spectrum, d_products, weights, strict=True):
            new.append(tf.matmul(factors, d_factors, transpose_a=True))
            d_factors = ordering.late(d_factors, new[-1])
            d_spectrum.append(tf.matmul(d_factors, transformed, transpose_b=True))
        # Parts are added in float32, whatever the inputs are.
        for group, before in enumerate(d_weights):
            new[group] = tf.cast(before, tf.float32) + tf.cast(new[group], tf.float32)
        d_weights[:] = new
        return _from_spectrum(algorithm.analysis, d_spectrum)

    d_inputs = ordering.in_parts(differentiate_part, MAPS_AT_A_TIME, inputs, upstream)
    d_kernel, start = 0.0, 0
    for each in d_weights:
        matrix = tf.constant(algorithm.weights[start : start + each.shape[0]], each.dtype)
        flat = tf.reshape(each, [each.shape[0], kernel.shape[2] * kernel.shape[3]])
        d_kernel += tf.cast(tf.matmul(matrix, flat, transpose_a=True), tf.float32)
        start += each.shape[0]
    return d_inputs, tf.reshape(tf.cast(d_kernel, kernel.dtype), kernel.shape)


class _Transform(NamedTuple):
    """From a map to its products' factors: first the rows, then the columns of each group."""

    rows: np.ndarray  # [N, S], real frequencies first, then pairs of real and imaginary parts
    real: np.ndarray  # [factors, S], of a row's real frequency
    complex: np.ndarray  # [3 N, 2 S], of a complex one


class _Algorithm(NamedTuple):
    """The three transforms; `synthesis` is given by its transpose."""

    analysis: _Transform
    weights: np.ndarray  # [F, 9]
    synthesis: _Transform


@functools.cache
def _algorithm(side):
    """Derives the algorithm for maps of a side S."""
    size = side + 1
    wave = np.exp(-2j * np.pi * np.outer(np.arange(size), np.arange(-1, size)) / size)
    places, taps = wave[:, 1 : side + 1], wave[:, 2::-1]  # taps: kernel turned, as it correlates
    half = range(size // 2 + 1)
    reals = [each for each in half if 2 * each % size == 0]
    complexes = [each for each in half if 2 * each % size]

    rows, last = [places[each].real for each in reals], [places[each].real for each in reals]
    for each in complexes:
        rows += [places[each].real, places[each].imag]
        last += [2 * places[each].real, 2 * places[each].imag]
    analysis = _Transform(np.stack(rows), *_columns(places, reals, complexes, analysis=True))
    synthesis = _Transform(
        np.stack(last) / size, *_columns(places / size, reals, complexes, analysis=False)
    )
    weights = []
    for row in [*reals, *complexes]:
        for column in [*reals, *complexes] if row in reals else range(size):
            tap = np.outer(taps[row], taps[column]).reshape(-1)
            is_real = row in reals and column in reals
            weights += [tap.real] if is_real else [tap.real, tap.imag, tap.real + tap.imag]
    return _Algorithm(analysis, np.stack(weights), synthesis)


def _columns(places, reals, complexes, analysis):
    """Returns the matrices of the columns, of real and of complex rows.

    A product (a + bi)(c + di) comes from p = ac, q = bd and r = (a + b)(c + d): its real part is
    p - q, its imaginary one r - p - q. The synthesis of a complex number x + yi at a place where
    the wave is e + fi is (x e + y f) + (y e - x f) i.
    """
    real = [places[each].real for each in reals]
    for each in complexes:
        e, f = places[each].real, places[each].imag
        real += [e, f, e + f] if analysis else [2 * (e - f), -2 * (e + f), 2 * f]
    full = []
    for wave in places:
        e, f = wave.real, wave.imag
        if analysis:
            of_real, of_imaginary = np.append(e, -f), np.append(f, e)
            full += [of_real, of_imaginary, of_real + of_imaginary]
        else:
            full += [np.append(e - f, -e - f), np.append(-e - f, f - e), np.append(f, e)]
    return np.stack(real), np.stack(full)


def _transform_kernel(algorithm, kernel):
    """Returns the weights of the two groups, [factors of the group, C, K]."""
    matrix = tf.constant(algorithm.weights, kernel.dtype)
    transformed = tf.matmul(matrix, tf.reshape(kernel, [9, -1]))
    transformed = tf.reshape(transformed, [-1, *kernel.shape[2:]])
    # All factors of the second group are of rows that have 3 N each; the first has fewer than that.
    num_reals = len(algorithm.weights) % len(algorithm.analysis.complex)
    return transformed[:num_reals], transformed[num_reals:]


def _to_spectrum(transform, maps):
    """Transforms [R, S, S, C]; returns the two groups, [factors of the group, R, C]."""
    side, channels = maps.shape[1], maps.shape[-1]
    rows, real, full = (tf.constant(each, maps.dtype) for each in transform)
    planes = tf.reshape(tf.transpose(maps, [1, 2, 0, 3]), [side, -1])
    planes = tf.matmul(rows, planes)
    num_reals = 2 - rows.shape[0] % 2
    groups = []
    for group, (matrix, parts) in enumerate([(real, 1), (full, 2)]):
        own = planes[num_reals:] if group else planes[:num_reals]
        own = tf.matmul(matrix, tf.reshape(own, [own.shape[0] // parts, parts * side, -1]))
        groups.append(tf.reshape(own, [own.shape[0] * matrix.shape[0], -1, channels]))
    return groups


def _from_spectrum(transform, spectrum):
    """The transpose of `_to_spectrum`."""
    side, channels = transform.real.shape[1], spectrum[0].shape[-1]
    rows, real, full = (tf.constant(each, spectrum[0].dtype) for each in transform)
    planes = []
    for matrix, parts, own in ((real, 1, spectrum[0]), (full, 2, spectrum[1])):
        count = own.shape[0] // matrix.shape[0]
        own = tf.reshape(own, [count, matrix.shape[0], -1])
        own = tf.matmul(matrix, own, transpose_a=True)
        planes.append(tf.reshape(own, [count * parts, side, -1]))
    planes = tf.reshape(tf.concat(planes, axis=0), [rows.shape[0], -1])
    planes = tf.matmul(rows, planes, transpose_a=True)
    maps = tf.reshape(planes, [side, side, -1, channels])
    return tf.transpose(maps, [2, 0, 1, 3])
