"""The table of causes, and the diagnosis: which of them a run has."""

import dataclasses

from rethink_tf.diagnosis import data_causes, detection_causes, training_causes, weight_causes

# A new cause is a function of `RunFiles` that returns a `Finding` or None, a line here, and a test.
CAUSES = (
    data_causes.no_evaluation_objects,
    data_causes.images_without_objects,
    data_causes.objects_left_out,
    data_causes.classes_without_training,
    data_causes.categories_differ,
    data_causes.boxes_outside,
    data_causes.boxes_contradict_masks,
    data_causes.objects_too_small,
    data_causes.masks_missing,
    detection_causes.nothing_detected,
    detection_causes.classes_mixed_up,
    detection_causes.boxes_in_another_form,
    detection_causes.masks_empty,
    training_causes.not_finite,
    training_causes.loss_rises,
    training_causes.rate_too_high,
    training_causes.rate_too_low,
    training_causes.warming_up,
    training_causes.too_early,
    training_causes.few_positives,
    training_causes.statistics_of_one_image,
    weight_causes.frozen_random,
    weight_causes.part_without_gradient,
    weight_causes.weights_not_finite,
    weight_causes.weights_unchanged,
)


def diagnose(run):
    """Returns the `Finding`s of a run, the heaviest first.

    Args:
        run: `run_files.RunFiles`.
    """
    found = [(cause.__name__, cause(run)) for cause in CAUSES]
    findings = [dataclasses.replace(each, cause=name) for name, each in found if each]
    return sorted(findings, key=lambda each: -each.weight)
