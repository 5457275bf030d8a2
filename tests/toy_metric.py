"""A metric in one file: detections an image."""

import gin


@gin.register
class CountMetric:
    """How many detections an image has, on average."""

    headline = "count/mean"

    def __init__(self, ground_truth, fields=()):
        self._num_images, self._fields = len(ground_truth["images"]), fields

    def evaluate(self, results):
        assert all(set(self._fields) & {"sizes"} <= set(result) for result in results)
        return {self.headline: len(results) / self._num_images}

    def format_table(self, metrics):
        return f"detections an image {metrics[self.headline]:.2f}"
