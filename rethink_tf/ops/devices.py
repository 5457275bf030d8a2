"""What kind of device runs the model: some kernels are fast, or right, on one kind alone."""

import tensorflow as tf


def replica_device_type():
    """Returns "CPU", "GPU" or "TPU": the kind of the strategy's devices.

    Within a strategy's scope, and in what it runs, it is that strategy's own: a strategy may run on
    the CPU of a host that has GPUs. Without one it is the kind that TensorFlow places
    operations on: the GPU where there is one.
    """
    if tf.distribute.has_strategy():
        devices = tf.distribute.get_strategy().extended.worker_devices
        return tf.DeviceSpec.from_string(devices[0]).device_type
    kinds = {device.device_type for device in tf.config.list_logical_devices()}
    return next(kind for kind in ("TPU", "GPU", "CPU") if kind in kinds)
