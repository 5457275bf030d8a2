"""3x3 convolutions of small square maps as products of their spectra: a fifth of the arithmetic.

The maps of RoIs are small enough for a discrete Fourier transform to be a few matrix products, and
so many that the transform of the kernel does not count. A map of S x S is padded to N = S + 1: the
convolution of a spectrum is circular and adds the first row and column to the last ones, which the
padding leaves free. The product of two complex numbers takes three of real ones (Karatsuba), whose
sums become rows of the transforms. What is left is a bilinear algorithm in real numbers,

    outputs = synthesis ((analysis inputs) (weights kernel)),

with F = 94 products a map of 7 x 7 and pair of channels, where the sum over the kernel takes 441;
of 14 x 14, 337 and 1764. Half of the frequencies of a row are the conjugates of the others. Of the
rest the first (and, if N is even, the last) are real and come with half of the columns; the others
are complex. Real and complex rows are kept apart, and so are complex ones of more than
MAX_PRODUCTS: a group's weights are made when it comes to its products, so that those of all, which
for 14 x 14 are 37 kernels, are never held at once.

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
# Of a group of frequencies.
MAX_PRODUCTS = 96


def convolve(inputs, kernel):
    """Convolves with zeros around, as `ops.convolution.convolve` does.

    Args:
        inputs: floating [R, S, S, C], S static.
        kernel: [3, 3, C, K], the same dtype.

    Returns:
        [R, S, S, K].
    """
    algorithm = _algorithm(inputs.shape[1])
    weights = _Weights(algorithm, kernel)

    def convolve_part(maps):
        products = []
        for group, factors in enumerate(_to_spectrum(algorithm.analysis, maps)):
            transformed = weights.of(group, after=[maps, *products[-1:]])
            products.append(tf.matmul(factors, transformed))
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
    weights = _Weights(algorithm, kernel)
    d_kernels = []

    def differentiate_part(maps, upstream):
        """Returns the gradient of some maps, and notes what they give the kernel's."""
        spectrum = _to_spectrum(algorithm.analysis, maps)
        d_products = _to_spectrum(algorithm.synthesis, upstream)
        d_spectrum = []
        for group, (factors, d_factors) in enumerate(zip(spectrum, d_products, strict=True)):
            factors = ordering.run_after(factors, *d_spectrum[-1:])
            d_kernel = weights.transpose(group, tf.matmul(factors, d_factors, transpose_a=True))
            d_kernels.append(tf.cast(d_kernel, tf.float32))
            d_factors = ordering.run_after(d_factors, d_kernel)
            transformed = weights.of(group, after=[d_kernel])
            d_spectrum.append(tf.matmul(d_factors, transformed, transpose_b=True))
        return _from_spectrum(algorithm.analysis, d_spectrum)

    d_inputs = ordering.in_parts(differentiate_part, MAPS_AT_A_TIME, inputs, upstream)
    # Added in float32, whatever the inputs are.
    d_kernel = tf.cast(tf.add_n(d_kernels), kernel.dtype)
    return d_inputs, tf.reshape(d_kernel, kernel.shape)


class _Weights:
    """A kernel's factors of the products, made for each group once, when it is needed."""

    def __init__(self, algorithm, kernel):
        self._kernel, self._made, self._matrices = kernel, {}, []
        start = 0
        for group in algorithm.analysis.groups():
            self._matrices.append(algorithm.weights[start : start + group.num_products])
            start += group.num_products

    def of(self, group, after):
        """Returns the weights of a group, [products of the group, C, K], no sooner than tensors."""
        if group not in self._made:
            kernel = tf.reshape(ordering.run_after(self._kernel, *after), [9, -1])
            transformed = tf.matmul(tf.constant(self._matrices[group], kernel.dtype), kernel)
            self._made[group] = tf.reshape(transformed, [-1, *self._kernel.shape[2:]])
        return self._made[group]

    def transpose(self, group, d_weights):
        """Returns what the gradient of a group's weights is for the kernel, [9, C K]."""
        matrix = tf.constant(self._matrices[group], d_weights.dtype)
        flat = tf.reshape(d_weights, [matrix.shape[0], -1])
        return tf.matmul(matrix, flat, transpose_a=True)


class _Group(NamedTuple):
    """Rows of a transform whose columns are transformed by the same matrix."""

    planes: slice  # of the rows' transforms
    parts: int  # planes that the matrix takes at once: the real and the imaginary one, or one
    matrix: np.ndarray  # [factors, parts S]

    @property
    def count(self):
        return (self.planes.stop - self.planes.start) // self.parts

    @property
    def num_products(self):
        return self.count * len(self.matrix)


class _Transform(NamedTuple):
    """From a map to its products' factors: first the rows, then the columns of each group."""

    rows: np.ndarray  # [N, S], real frequencies first, then pairs of real and imaginary parts
    real: np.ndarray  # [factors, S], of a row's real frequency
    complex: np.ndarray  # [3 N, 2 S], of a complex one

    def groups(self):
        """Returns the groups, the real frequencies first."""
        size = len(self.rows)
        num_reals = 2 - size % 2
        at_a_time = 2 * max(MAX_PRODUCTS // len(self.complex), 1)
        return [_Group(slice(0, num_reals), 1, self.real)] + [
            _Group(slice(start, min(start + at_a_time, size)), 2, self.complex)
            for start in range(num_reals, size, at_a_time)
        ]


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
    waves, taps = wave[:, 1 : side + 1], wave[:, 2::-1]  # taps: kernel turned, as it correlates
    half = range(size // 2 + 1)
    reals = [each for each in half if 2 * each % size == 0]
    complexes = [each for each in half if 2 * each % size]

    rows, last = [waves[each].real for each in reals], [waves[each].real for each in reals]
    for each in complexes:
        rows += [waves[each].real, waves[each].imag]
        last += [2 * waves[each].real, 2 * waves[each].imag]
    analysis = _Transform(np.stack(rows), *_columns(waves, reals, complexes, analysis=True))
    synthesis = _Transform(
        np.stack(last) / size, *_columns(waves / size, reals, complexes, analysis=False)
    )
    weights = []
    for row in [*reals, *complexes]:
        for column in [*reals, *complexes] if row in reals else range(size):
            tap = np.outer(taps[row], taps[column]).reshape(-1)
            is_real = row in reals and column in reals
            weights += [tap.real] if is_real else [tap.real, tap.imag, tap.real + tap.imag]
    return _Algorithm(analysis, np.stack(weights), synthesis)


def _columns(waves, reals, complexes, analysis):
    """Returns the matrices of the columns, of real and of complex rows.

    A product (a + bi)(c + di) comes from p = ac, q = bd and r = (a + b)(c + d): its real part is
    p - q, its imaginary one r - p - q. The synthesis of a complex number x + yi at a place where
    the wave is e + fi is (x e + y f) + (y e - x f) i.
    """
    real = [waves[each].real for each in reals]
    for each in complexes:
        e, f = waves[each].real, waves[each].imag
        real += [e, f, e + f] if analysis else [2 * (e - f), -2 * (e + f), 2 * f]
    full = []
    for wave in waves:
        e, f = wave.real, wave.imag
        if analysis:
            of_real, of_imaginary = np.append(e, -f), np.append(f, e)
            full += [of_real, of_imaginary, of_real + of_imaginary]
        else:
            full += [np.append(e - f, -e - f), np.append(-e - f, f - e), np.append(f, e)]
    return np.stack(real), np.stack(full)


def _to_spectrum(transform, maps):
    """Transforms [R, S, S, C]; returns the groups, [factors of the group, R, C] each."""
    side, channels = maps.shape[1], maps.shape[-1]
    planes = tf.reshape(tf.transpose(maps, [1, 2, 0, 3]), [side, -1])
    planes = tf.matmul(tf.constant(transform.rows, maps.dtype), planes)
    spectrum = []
    for group in transform.groups():
        own = tf.reshape(planes[group.planes], [group.count, group.parts * side, -1])
        own = tf.matmul(tf.constant(group.matrix, maps.dtype), own)
        spectrum.append(tf.reshape(own, [group.num_products, -1, channels]))
    return spectrum


def _from_spectrum(transform, spectrum):
    """The transpose of `_to_spectrum`."""
    side, channels, dtype = transform.real.shape[1], spectrum[0].shape[-1], spectrum[0].dtype
    planes = []
    for group, own in zip(transform.groups(), spectrum, strict=True):
        own = tf.reshape(own, [group.count, len(group.matrix), -1])
        own = tf.matmul(tf.constant(group.matrix, dtype), own, transpose_a=True)
        planes.append(tf.reshape(own, [group.count * group.parts, side, -1]))
    planes = tf.reshape(tf.concat(planes, axis=0), [len(transform.rows), -1])
    planes = tf.matmul(tf.constant(transform.rows, dtype), planes, transpose_a=True)
    maps = tf.reshape(planes, [side, side, -1, channels])
    return tf.transpose(maps, [2, 0, 1, 3])
