"""Record directories: what a converter leaves and a run opens.

`examples` encodes an image and its objects as a `tf.train.Example`, `tfrecord_files` writes and
reads the shards, and `store` keeps the index and the manifest beside them. `foreign` makes both for
records that other tools wrote (`label_maps` names their classes). `splits` opens the directories of
a run, to train on and to evaluate, and checks that they fit each other: their `categories`, their
`keypoints` (`keypoint_sides`: which of them change places in a mirrored image). `subsets` chooses
images by their ids, `skips` counts and names what was left out of a data set.
"""
