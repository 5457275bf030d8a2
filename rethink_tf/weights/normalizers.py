"""Whether a backbone has the normalization that weights were trained with."""


def check(backbone, names):
    """Checks that statistics come where the backbone has them, and only there.

    Args:
        backbone: layer whose variables exist.
        names: of the backbone's arrays, as Detectron2 calls them.

    Raises:
        ValueError: if one has batch normalization and the other another one, or none.
    """
    has_statistics = any(name.endswith(".norm.running_mean") for name in names)
    has_norm = any(".norm." in name for name in names)
    variables = " ".join(variable.name for variable in backbone.variables)
    if "moving_deviation" in variables:
        raise ValueError(
            "NORMALIZER='batch_renorm' starts from random weights alone: bind NORMALIZER='syncbn' "
            "for weights with batch normalization."
        )
    wants = "moving_mean" in variables
    if has_statistics and not wants:
        raise ValueError(
            "The checkpoint has batch normalization, with statistics, and the backbone has none: "
            "the scales of one say nothing of the other's. Bind NORMALIZER='syncbn' or "
            "'frozen_bn', or take weights with group normalization (of classifiers Detectron's "
            "R-50-GN.pkl, timm's resnet50_gn)."
        )
    if wants and has_norm and not has_statistics:
        raise ValueError(
            "The backbone has batch normalization, and the checkpoint another one, without "
            "statistics: bind NORMALIZER='gn', or take weights with batch normalization."
        )
