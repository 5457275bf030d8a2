"""Why a run's AP is low, found in what the run has left: nothing is trained or evaluated for it.

`run_files` reads the files, each once. A cause is a function of them that returns a `Finding` or
None: those of the data are in `data_causes`, those of the training in `training_causes` and
`weight_causes`, those that detections show in `detection_causes`. `table` lists all of them, and
`texts` says what was found. TensorFlow is needed for the weights alone.
"""
