"""What the commands that convert data share: flags of the output, and what is said at the end."""

import sys
from collections.abc import Callable

from absl import app, flags

from rethink_tf.data.sources import image_files


def define_output_flags() -> None:
    """Defines the flags that all converters have, those of `sources.writing.write_records`."""
    flags.DEFINE_string("output", None, "Record directory to make.", required=True)
    flags.DEFINE_integer(
        "num_shards", None, "Number of record files.", required=True, lower_bound=1
    )
    flags.DEFINE_integer(
        "num_workers",
        None,
        "Processes that read images; 0: none besides this one. Default: one a core.",
        lower_bound=0,
    )
    flags.DEFINE_integer(
        "num_images",
        None,
        "Write that many images, chosen from the hash of their ids: the same ones everywhere, the "
        "smaller choice inside the larger. Default: all.",
        lower_bound=1,
    )
    flags.DEFINE_enum(
        "exif",
        image_files.APPLY,
        image_files.EXIF_OPTIONS,
        "apply: images are annotated as they are shown, turned by their EXIF orientation. ignore: "
        "in the pixels as stored.",
    )
    flags.DEFINE_enum(
        "sixteen_bit",
        None,
        image_files.SIXTEEN_BIT_OPTIONS,
        "How images of 16 bits become 8 bits: full divides by 257, range maps each image's own "
        "lowest and highest value to 0 and 255. Default: they are left out, with their range.",
    )
    flags.DEFINE_bool("strict", False, "Stop at the first bad entry instead of skipping it.")
    flags.DEFINE_bool("overwrite", False, "Replace finished records in --output.")


def run_with_flags(converter: Callable[..., dict], argv: list[str], **source) -> None:
    """Calls a converter with what the flags say, and prints what was kept and skipped.

    Args:
        converter: takes the arguments of `define_output_flags` and of `source`, by name.
        argv: what `absl.app` gave to `main`.
        **source: further arguments.
    """
    values = flags.FLAGS
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; every value needs its --flag=")
    try:
        manifest = converter(
            **source,
            output=values.output,
            num_shards=values.num_shards,
            num_workers=values.num_workers,
            strict=values.strict,
            overwrite=values.overwrite,
            num_images=values.num_images,
            exif=values.exif,
            sixteen_bit=values.sixteen_bit,
        )
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    from rethink_tf.data.sources import manifests  # only now, as it imports TensorFlow

    for line in manifests.summary_lines(values.output, manifest):
        print(line)
