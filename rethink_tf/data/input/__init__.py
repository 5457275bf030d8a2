"""The input of a step: from record directories to batches.

`pipeline` joins it all. `order` says which images each step reads, and `batch_shapes` which of them
share a batch and how large it is; `resizing` draws their sizes, `slots` turns a step into arrays of
records and draws, and `worker_share` takes this worker's part. Then tf.data takes over: `reading`
reads each record at its offset, `decode` makes tensors of it, `augment` mirrors, resizes, crops and
pads, and `copy_paste` joins two images.
"""
