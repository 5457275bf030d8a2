"""Studies: arms, schedules by branching, subsets and seeds; their plan, and its runs in order.

Runs are processes of `rethink_tf.train`; nothing here imports TensorFlow.
"""
