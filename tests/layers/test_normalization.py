"""The normalizers: hand values, what trains, and what changes in training."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from rethink_tf.layers import normalization
from rethink_tf.ops.content import Content, Rows


@pytest.fixture(params=["mixed_bfloat16", "mixed_float16"])
def mixed_precision(request):
    before = tf_keras.mixed_precision.global_policy()
    tf_keras.mixed_precision.set_global_policy(request.param)
    yield request.param.removeprefix("mixed_")
    tf_keras.mixed_precision.set_global_policy(before)


def test_group_normalization_has_mean_0_and_variance_1_a_group():
    layer = normalization.GroupNormalization()
    inputs = 3.0 + 5.0 * np.random.default_rng(0).normal(size=(2, 6, 4, 64))
    outputs = layer(inputs.astype(np.float32)).numpy().reshape(2, -1, 32, 2)
    np.testing.assert_allclose(outputs.mean(axis=(1, 3)), 0.0, atol=1e-5)
    np.testing.assert_allclose(outputs.std(axis=(1, 3)), 1.0, atol=1e-4)
    assert [v.name.split("/")[-1] for v in layer.trainable_variables] == ["gamma:0", "beta:0"]
    assert not layer.non_trainable_variables


def test_group_normalization_scales_and_shifts():
    layer = normalization.GroupNormalization(num_groups=1, epsilon=1e-8)
    layer.build([None, 2])
    layer.gamma.assign([2.0, 3.0])
    layer.beta.assign([10.0, 20.0])
    # Mean 4, deviation 1.
    np.testing.assert_allclose(layer(tf.constant([[3.0, 5.0]])), [[8.0, 23.0]], rtol=1e-5)


def test_frozen_batch_normalization_by_hand():
    layer = normalization.FrozenBatchNormalization(epsilon=1.0)
    layer.build([None, 2])
    for variable, value in [
        (layer.gamma, [2.0, 1.0]),
        (layer.beta, [5.0, 0.0]),
        (layer.moving_mean, [1.0, 0.0]),
        (layer.moving_variance, [3.0, 0.0]),
    ]:
        variable.assign(value)
    inputs = tf.constant([[[[4.0, 7.0]]]])
    # 2 * (4 - 1) / sqrt(3 + 1) + 5 = 8 and 7 / sqrt(0 + 1) = 7, in training too.
    for training in (False, True):
        np.testing.assert_allclose(layer(inputs, training=training), [[[[8.0, 7.0]]]])
    assert not layer.trainable_variables and len(layer.non_trainable_variables) == 4
    np.testing.assert_array_equal(layer.moving_mean, [1.0, 0.0])


def test_synchronised_batch_normalization_follows_the_batches():
    layer = normalization.make_normalization("syncbn", "norm")
    inputs = tf.constant([[1.0], [3.0]])  # mean 2, variance 1
    outputs = layer(inputs, training=True)
    np.testing.assert_allclose(outputs, [[-1.0], [1.0]], rtol=1e-4)
    np.testing.assert_allclose(layer.moving_mean, [0.9 * 0 + 0.1 * 2], rtol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, [0.9 * 1 + 0.1 * 1], rtol=1e-5)
    outputs = layer(inputs, training=False)
    np.testing.assert_allclose(outputs, [[0.8], [2.8]], rtol=1e-4)


def normalize_on(strategy, shares, upstreams):
    """Normalizes a share on each replica in training.

    Returns:
        The outputs and the gradients of the inputs of each replica, and the moving averages there.
    """
    with strategy.scope():
        layer = normalization.make_normalization("syncbn", "norm")
        layer.build([None, shares[0].shape[-1]])
        layer.gamma.assign([1.5, 0.5, 2.0])

    def one_replica():
        place = tf.distribute.get_replica_context().replica_id_in_sync_group
        # Shares differ in size, which a gather would not allow.
        inputs, upstream = (
            tf.switch_case(place, [lambda each=each: tf.constant(each) for each in values])
            for values in (shares, upstreams)
        )
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = layer(inputs, training=True)
        gradient = tape.gradient(outputs, inputs, upstream)
        moving = layer.moving_mean.read_value(), layer.moving_variance.read_value()
        return outputs, gradient, *moving

    results = tf.function(lambda: strategy.run(one_replica))()
    return [strategy.experimental_local_results(each) for each in results]


def test_batch_statistics_are_those_of_all_replicas(two_replicas):
    """One image on one replica and three on the other, under a mean that is large."""
    generator = np.random.default_rng(1)
    inputs = (10.0 + generator.normal(size=(4, 3, 5, 3))).astype(np.float32)
    upstream = generator.normal(size=inputs.shape).astype(np.float32)
    one = tf.distribute.OneDeviceStrategy("CPU:0")
    outputs, gradient, mean, variance = normalize_on(one, [inputs], [upstream])
    np.testing.assert_allclose(np.mean(outputs[0], (0, 1, 2)), 0.0, atol=1e-2)
    exact = inputs.astype(np.float64)
    np.testing.assert_allclose(mean[0], 0.1 * exact.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(variance[0], 0.9 + 0.1 * exact.var((0, 1, 2)), rtol=1e-5)

    shares = normalize_on(two_replicas, [inputs[:1], inputs[1:]], [upstream[:1], upstream[1:]])
    np.testing.assert_allclose(np.concatenate(shares[0]), outputs[0], atol=1e-4)
    np.testing.assert_allclose(np.concatenate(shares[1]), gradient[0], atol=1e-5)
    for moving, expected in zip(shares[2:], (mean, variance), strict=True):
        np.testing.assert_array_equal(moving[0], moving[1])
        np.testing.assert_allclose(moving[0], expected[0], rtol=1e-6)


KINDS = [kind for kind in normalization.NORMALIZERS if kind != "none"]


@pytest.mark.parametrize("kind", KINDS)
def test_made_by_name(kind):
    layer = normalization.make_normalization(kind, "norm")
    layer(tf.zeros([1, 2, 2, 32]), training=True)
    assert layer.name == "norm"
    assert len(layer.trainable_variables) == (0 if kind == "frozen_bn" else 2)


@pytest.mark.parametrize(("kind", "axes"), [("layer_norm", (1, 2, 3)), ("instance_norm", (1, 2))])
def test_layer_and_instance_normalization_by_their_definitions(kind, axes):
    layer = normalization.make_normalization(kind, "norm")
    inputs = 3.0 + 5.0 * np.random.default_rng(0).normal(size=(2, 6, 4, 10))
    mean, variance = inputs.mean(axes, keepdims=True), inputs.var(axes, keepdims=True)
    outputs = layer(inputs.astype(np.float32), training=True)
    np.testing.assert_allclose(outputs, (inputs - mean) / np.sqrt(variance + 1e-5), atol=1e-4)


def test_batch_renormalization_by_hand():
    layer = normalization.BatchRenormalization(momentum=0.5, epsilon=0.0)
    layer.build([None, 1])
    inputs = tf.constant([[1.0], [9.0]])  # mean 5, deviation 4
    # At first it is batch normalization: r is 1 and d is 0.
    np.testing.assert_allclose(layer(inputs, training=True), [[-1.0], [1.0]], rtol=1e-5)
    np.testing.assert_allclose(layer.moving_mean, [2.5], rtol=1e-5)
    np.testing.assert_allclose(layer.moving_deviation, [2.5], rtol=1e-5)
    assert int(layer.num_updates) == 1
    with normalization.averages_at_rest():
        layer(inputs, training=True)
    assert int(layer.num_updates) == 1 and float(layer.moving_mean[0]) == 2.5
    # From then on with r = 4 / 2.5 = 1.6 and d = (5 - 2.5) / 2.5 = 1: as at test, for one batch.
    layer.num_updates.assign(60_000)
    layer.gamma.assign([3.0])
    at_test = layer(inputs)
    np.testing.assert_allclose(at_test, [[3 * -0.6], [3 * 2.6]], rtol=1e-5)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = layer(inputs, training=True)
        first = outputs[0, 0]
    np.testing.assert_allclose(outputs, at_test, rtol=1e-5)
    d_inputs, d_gamma = tape.gradient(first, [inputs, layer.gamma])
    # Through the batch's mean and deviation, not through r and d: a batch of two is -1 and 1.
    np.testing.assert_allclose(d_inputs, [[0.0], [0.0]], atol=1e-5)
    np.testing.assert_allclose(d_gamma, [-0.6], rtol=1e-5)
    # Bounded: r by 3 and d by 5.
    layer.moving_mean.assign([-100.0])
    layer.moving_deviation.assign([0.5])
    np.testing.assert_allclose(layer(inputs, training=True), [[3 * 2.0], [3 * 8.0]], rtol=1e-5)


def test_bounds_of_batch_renormalization_follow_the_published_ramp():
    for step, r, d in [
        (0, 1, 0),
        (5_000, 1, 0),
        (15_000, 1 + 2 * 10 / 35, 2.5),
        (25_000, 1 + 2 * 20 / 35, 5),
        (40_000, 3, 5),
        (99_999, 3, 5),
    ]:
        found = normalization.renorm_bounds(tf.constant(step, tf.int64))
        np.testing.assert_allclose(found, [r, d], rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_content_counts_nowhere(kind):
    """Outputs, gradients and averages are those of the content alone, and 0 beyond it."""
    generator = np.random.default_rng(0)
    inputs = generator.normal(2.0, 3.0, (2, 4, 6, 32)).astype(np.float32)
    sizes = [(3, 4), (4, 2)]
    rows = Content(tf.constant(sizes))
    upstream = generator.normal(size=inputs.shape).astype(np.float32)
    layers = [normalization.make_normalization(kind, "norm") for _ in range(2)]
    for layer in layers:
        layer.build([None, None, None, 32])
        layer.gamma.assign(np.linspace(0.5, 2.0, 32))
        layer.beta.assign(np.linspace(-1.0, 1.0, 32))

    def run(layer, values, upstream, content=None):
        with tf.GradientTape() as tape:
            tape.watch(values)
            outputs = layer(values, training=True, content=content)
        sources = [values, *layer.trainable_variables]
        return outputs, tape.gradient(outputs, sources, upstream)

    outputs, gradients = run(layers[0], tf.constant(inputs), upstream, rows)
    # The same cells without the others: as one row of places, or for each image on its own.
    cells = [inputs[i, :h, :w].reshape(1, 1, -1, 32) for i, (h, w) in enumerate(sizes)]
    ups = [upstream[i, :h, :w].reshape(1, 1, -1, 32) for i, (h, w) in enumerate(sizes)]
    if kind in ("syncbn", "batch_renorm"):
        cells, ups = [np.concatenate(each, 2) for each in (cells, ups)], None
        cells, ups = [cells[0]], [cells[1]]
    alone = [
        run(layers[1], tf.constant(c), tf.constant(u)) for c, u in zip(cells, ups, strict=True)
    ]
    for found, position in ((outputs, 0), (gradients[0], 1)):
        expected = [np.array(each[0] if position == 0 else each[1][0]) for each in alone]
        expected = np.concatenate([each.reshape(-1, 32) for each in expected])
        inside = [found[i, :h, :w].numpy().reshape(-1, 32) for i, (h, w) in enumerate(sizes)]
        np.testing.assert_allclose(np.concatenate(inside), expected, rtol=1e-4, atol=1e-4)
        assert not found[0, 3:].numpy().any() and not found[1, :, 2:].numpy().any()
    for place, gradient in enumerate(gradients[1:], start=1):
        expected = sum(np.array(each[1][place]) for each in alone)
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-3)
    for one, other in zip(*(layer.non_trainable_variables for layer in layers), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_rows_that_are_not_there_count_nowhere():
    layer = normalization.make_normalization("syncbn", "norm")
    inputs = tf.reshape(tf.constant([1.0, 3.0, 50.0, 70.0]), [2, 1, 2, 1])
    outputs = layer(inputs, training=True, content=Rows(tf.constant([True, False])))
    np.testing.assert_allclose(outputs[0, 0, :, 0], [-1.0, 1.0], rtol=1e-4)
    np.testing.assert_allclose(layer.moving_mean, [0.1 * 2], rtol=1e-5)
    # Where there is no row at all, nothing moves.
    layer(inputs, training=True, content=Rows(tf.constant([False, False])))
    np.testing.assert_allclose(layer.moving_mean, [0.1 * 2], rtol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, [0.9 + 0.1], rtol=1e-5)


def test_none_is_no_layer():
    assert normalization.make_normalization("none", "norm") is None


def test_an_unknown_kind_is_an_error_that_lists_the_known():
    with pytest.raises(
        ValueError,
        match="'bn'.*gn, layer_norm, instance_norm, syncbn, batch_renorm, frozen_bn, none",
    ):
        normalization.make_normalization("bn", "norm")


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_precision_keeps_float32_parameters(mixed_precision, kind):
    layer = normalization.make_normalization(kind, "norm")
    outputs = layer(tf.ones([1, 2, 2, 32], mixed_precision), training=True)
    assert outputs.dtype == mixed_precision
    assert {variable.dtype for variable in layer.variables} <= {tf.float32, tf.int64}


@pytest.mark.parametrize(
    "layer",
    [
        normalization.GroupNormalization(num_groups=4, epsilon=0.5, name="a"),
        normalization.FrozenBatchNormalization(epsilon=0.5, name="b"),
        normalization.SyncBatchNormalization(momentum=0.5, epsilon=0.5, name="c"),
        normalization.BatchRenormalization(momentum=0.5, epsilon=0.5, name="d"),
    ],
)
def test_config_round_trip(layer):
    copy = type(layer).from_config(layer.get_config())
    assert copy.get_config() == layer.get_config()
    inputs = tf.constant(np.random.default_rng(0).normal(size=(2, 3, 3, 8)), tf.float32)
    np.testing.assert_array_equal(copy(inputs), layer(inputs))
