"""From a trained detector to numbers: inference, pasting of masks and COCO metrics."""
