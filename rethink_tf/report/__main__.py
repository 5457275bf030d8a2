"""Makes a page, figures and tables of a study, finished or not.

    python -m rethink_tf.report runs/study --output=report.html

Beside the page, its figures are written as SVG and its tables as CSV and Markdown, into the folder
named like it (report/ for report.html).
"""

import concurrent.futures
import os
import sys

from absl import app, flags

from rethink_tf import console, exit_codes, files

_OUTPUT = flags.DEFINE_string("output", "report.html", "The page to write.")
_DRAWS = flags.DEFINE_integer(
    "draws",
    200,
    "Draws of the test images for the bootstrap; 0 for none. At 500,000 detections a run one of "
    "two runs takes about 0.02 s.",
    lower_bound=0,
)


def main(argv):
    """Reads studies, and writes the report."""
    if len(argv) < 2:
        raise app.UsageError("Give the folder of a study, such as runs/study.")
    console.start()
    # Only now: help needs none of them.
    from rethink_tf.report import collecting, costs, further_tables, page, sections, study_tables

    folder, _ = os.path.splitext(_OUTPUT.value)
    try:
        runs = [run for each in argv[1:] for run in collecting.read_study(each)]
        published, pretraining = {}, {}
        for each in argv[1:]:
            published |= collecting.read_references(each)
            pretraining |= costs.pretraining_of(each)
        # The bootstrap, most of the tables' time, beside the drawing of figures.
        with concurrent.futures.ProcessPoolExecutor(1) as beside:
            further = beside.submit(further_tables.further_tables, runs, pretraining, _DRAWS.value)
            drawn = sections.all_figures(runs, published, pretraining)
            tables = study_tables.all_tables(runs) + further.result()
        for table in tables:
            files.write_whole(os.path.join(folder, f"{table.name}.csv"), table.csv())
        text = "\n".join(table.markdown() for table in tables)
        files.write_whole(os.path.join(folder, "tables.md"), text)
        for name, _, svg in drawn:
            files.write_whole(os.path.join(folder, f"{name}.svg"), svg)
        pictures = [(caption, svg) for _, caption, svg in drawn]
        content = page.render(
            "Study: " + ", ".join(argv[1:]),
            sections.summary(runs),
            pictures,
            tables,
            {"Samples": sections.samples(runs)},
        )
        files.write_whole(_OUTPUT.value, content)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(exit_codes.REFUSED)
    print(f"Wrote {_OUTPUT.value}; figures and tables are in {folder}.")


if __name__ == "__main__":
    app.run(main)
