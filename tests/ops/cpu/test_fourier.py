"""Convolutions by spectra against TensorFlow's own in float64."""

import numpy as np
import pytest
import tensorflow as tf
from detector_steps import machine_plan

from rethink_tf.ops.cpu import convolution, fourier


def draw(count, side, channels=6, filters=4, dtype="float32"):
    """Returns maps, a kernel, and a gradient of the outputs, none of mean 0."""
    generator = np.random.default_rng([count, side])
    shapes = [
        [count, side, side, channels],
        [3, 3, channels, filters],
        [count, side, side, filters],
    ]
    drawn = (tf.constant(generator.normal(size=shape) + 0.3, dtype) for shape in shapes)
    return list(drawn)


def ours(inputs, kernel, upstream):
    """As a run of this machine calls them: in float32 where bfloat16 has no kernels."""
    call = convolution.Convolutions(machine_plan().has_bfloat16_kernels)._exactly
    outputs = call(fourier.convolve, inputs, kernel)
    return [outputs, *call(fourier.gradients, inputs, kernel, upstream)]


def plain(inputs, kernel, upstream):
    inputs, kernel, upstream = (tf.cast(each, tf.float64) for each in (inputs, kernel, upstream))
    with tf.GradientTape() as tape:
        tape.watch([inputs, kernel])
        outputs = tf.nn.conv2d(inputs, kernel, 1, "SAME")
    return [outputs, *tape.gradient(outputs, [inputs, kernel], upstream)]


def assert_like_plain(found, arguments, tolerance):
    """Compares outputs and both gradients by their 2-norms."""
    for value, expected in zip(found, plain(*arguments), strict=True):
        assert value.shape == expected.shape and value.dtype == arguments[0].dtype
        difference = np.linalg.norm(tf.cast(value, tf.float64) - expected)
        assert difference <= tolerance * np.linalg.norm(expected)


@pytest.mark.parametrize("side", [1, 2, 5, 7, 8, 14])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 1e-2)])
def test_outputs_and_gradients_are_those_of_a_convolution(side, dtype, tolerance):
    arguments = draw(3, side, dtype=dtype)
    assert_like_plain(ours(*arguments), arguments, tolerance)


@pytest.mark.parametrize(("side", "products"), [(7, 94), (14, 337)])
def test_maps_take_a_fifth_of_the_products(side, products):
    """What the file promises: it would be 441 and 1764 without the transforms."""
    assert fourier._algorithm(side).weights.shape == (products, 9)


@pytest.mark.parametrize("count", [7, 8, 9])
def test_maps_are_taken_some_at_a_time(monkeypatch, count):
    monkeypatch.setattr(fourier, "MAPS_AT_A_TIME", 4)
    arguments = draw(count, 7)
    assert_like_plain(tf.function(ours)(*arguments), arguments, 1e-6)


@pytest.mark.parametrize("count", [0, 5])
def test_the_number_of_maps_may_be_unknown(count):
    arguments = draw(count, 7)
    specs = [tf.TensorSpec([None, *each.shape[1:]]) for each in arguments]
    specs[1] = tf.TensorSpec(arguments[1].shape)
    compute = tf.function(ours, input_signature=specs)
    assert_like_plain(compute(*arguments), arguments, 1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_convolutions_of_rois_go_by_spectra(monkeypatch, dtype):
    """The choice: wide 3x3 kernels on many small maps, and the same numbers either way."""
    monkeypatch.setattr(convolution, "MIN_FOURIER_MAPS", 4)
    taken = []
    for name in ("convolve", "gradients"):
        function = getattr(fourier, name)
        monkeypatch.setattr(
            fourier, name, lambda *a, f=function, name=name: taken.append(name) or f(*a)
        )
    arguments = inputs, kernel, upstream = draw(4, 7, 128, 128, dtype)
    convolve = convolution.Convolutions(machine_plan().has_bfloat16_kernels).convolve
    with tf.GradientTape() as tape:
        tape.watch([inputs, kernel])
        outputs = convolve(inputs, kernel)
    found = [outputs, *tape.gradient(outputs, [inputs, kernel], upstream)]
    assert taken == ["convolve", "gradients"]
    assert_like_plain(found, arguments, 1e-6 if dtype == "float32" else 1e-2)

    for other in ([inputs[:3], kernel], [inputs[:, :6], kernel], [inputs, kernel[..., :64]]):
        convolve(*other)
    convolve(inputs, kernel, 2)
    assert taken == ["convolve", "gradients"]
