"""Pre-training: the detectors' backbones as classifiers, on drawn textures, folders or ImageNet."""
