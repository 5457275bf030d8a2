"""Reads back what a converter of a data set wrote, for tests.

TensorFlow is imported where it is used: test files that do without it stay quick.
"""


def read_features(output):
    """Returns {image id: the features of its record} of a record directory."""
    import tensorflow as tf

    from rethink_tf.data.records import store, tfrecord_files

    found = {}
    for path in store.load_index(output).paths:
        for _, payload in tfrecord_files.read_frames(path):
            feature = tf.train.Example.FromString(payload).features.feature
            found[int(feature["image/source_id"].bytes_list.value[0])] = feature
    return found
