"""Says what a detector gets wrong and what that costs: one page of a run, or of COCO results.

    python -m rethink_tf.errors runs/quickstart --output=errors.html
    python -m rethink_tf.errors --annotations=instances_val2017.json \
        --results=coco_instances_results.json --images=val2017
"""

import sys

from absl import app, flags

from rethink_tf import console, exit_codes, files

_OUTPUT = flags.DEFINE_string("output", "errors.html", "The page to write.")
_ANNOTATIONS = flags.DEFINE_string(
    "annotations", None, "Ground truth, JSON in COCO's form; of a run by default its records'."
)
_RESULTS = flags.DEFINE_string(
    "results", None, "Detections, JSON in COCO's result form; in place of a run's folder."
)
_IMAGES = flags.DEFINE_string(
    "images", None, "Folder of the images; of a run by default those of its records."
)
_NUM_IMAGES = flags.DEFINE_integer(
    "num_images", 12, "How many of the worst images are drawn.", lower_bound=0
)


def main(argv):
    """Analyses one evaluation, and writes the page."""
    if len(argv) > 2 or (len(argv) == 2) == bool(_RESULTS.value):
        raise app.UsageError("Give the folder of a run, or --annotations and --results.")
    if _RESULTS.value and not _ANNOTATIONS.value:
        raise app.UsageError("--results needs the ground truth: add --annotations.")
    console.start()
    # Only now: help needs none of them.
    from rethink_tf.errors import examples, inputs, measures, sections, worst
    from rethink_tf.report import page

    try:
        if len(argv) == 2:
            case = inputs.read_run(argv[1], _ANNOTATIONS.value, _IMAGES.value)
        else:
            case = inputs.read_files(_ANNOTATIONS.value, _RESULTS.value, _IMAGES.value)
        found, confusion = measures.measure(case)
        # What is found last is the most detailed: masks where there are any.
        detailed = next((each for each in reversed(found) if each.errors), None)
        shown, drawn = None, {}
        if detailed:
            shown = worst.choose_score(detailed.errors)
            drawn["Images that lose the most"] = worst.draw(
                case, detailed, shown, _NUM_IMAGES.value
            )
            drawn["The surest errors of each kind (orange), and objects (green)"] = examples.draw(
                case, detailed
            )
        tables = sections.all_tables(case, found, confusion)
        content = page.render(
            f"Errors: {case.title}",
            sections.summary(case, found, shown),
            sections.all_figures(case, found, confusion),
            tables,
            drawn,
            sections.small_figures(found),
        )
        files.write_whole(_OUTPUT.value, content)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(exit_codes.REFUSED)
    print("\n".join(table.markdown() for table in tables[:2]))
    print(f"Wrote {_OUTPUT.value}.")


if __name__ == "__main__":
    app.run(main)
