"""Makes a page, figures and tables of a study, finished or not.

    python -m rethink_tf.report runs/study --output=report.html

Beside the page, its figures are written as SVG and its tables as CSV and Markdown, into the folder
named like it (report/ for report.html).
"""

import os
import sys

from absl import app, flags

from rethink_tf import console, exit_codes, files
from rethink_tf.metrics_file import COLLAPSED, DONE

_OUTPUT = flags.DEFINE_string("output", "report.html", "The page to write.")


def main(argv):
    """Reads studies, and writes the report."""
    if len(argv) < 2:
        raise app.UsageError("Give the folder of a study, such as runs/study.")
    console.start()
    # Only now: help needs none of them.
    from rethink_tf.report import collecting, figures, page, study_tables

    folder, _ = os.path.splitext(_OUTPUT.value)
    try:
        runs = [run for each in argv[1:] for run in collecting.read_study(each)]
        tables = study_tables.all_tables(runs)
        published = {}
        for each in argv[1:]:
            published |= collecting.read_references(each)
        drawn = _figures(figures, runs, collecting.metrics_of(runs), published)
        for table in tables:
            files.write_whole(os.path.join(folder, f"{table.name}.csv"), table.csv())
        text = "\n".join(table.markdown() for table in tables)
        files.write_whole(os.path.join(folder, "tables.md"), text)
        for name, _, svg in drawn:
            files.write_whole(os.path.join(folder, f"{name}.svg"), svg)
        pictures = [(caption, svg) for _, caption, svg in drawn]
        content = page.render("Study: " + ", ".join(argv[1:]), _summary(runs), pictures, tables)
        files.write_whole(_OUTPUT.value, content)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(exit_codes.REFUSED)
    print(f"Wrote {_OUTPUT.value}; figures and tables are in {folder}.")


def _figures(figures, runs, metrics, published):
    """Returns (name of the file, caption, SVG) of each figure."""
    found = []
    for metric in metrics:
        for subset in dict.fromkeys(run.subset for run in runs):
            name, where = f"{metric.replace('/', '_')}-{subset}", f"{metric} on {subset} data"
            # Published are box AP, of all data.
            references = published if (metric, subset) == ("box/AP", "all") else {}
            caption = (
                f"{where} over iterations. Thin lines are runs, points the means of the last "
                "checkpoints, crosses runs that collapsed."
            )
            svg = figures.over_steps(runs, metric, subset)
            found.append((f"over_steps-{name}", caption, svg))
            caption = (
                f"{where} at the end of each schedule; bars are the standard deviation over seeds"
                f"{', dotted lines what was published' if references else ''}."
            )
            svg = figures.by_schedule(runs, metric, subset, references)
            found.append((f"by_schedule-{name}", caption, svg))
    return found


def _summary(runs):
    arms = ", ".join(dict.fromkeys(run.arm for run in runs))
    counts = [
        f"{sum(run.state == state for run in runs)} {name}"
        for state, name in ((DONE, "done"), (COLLAPSED, "collapsed"))
    ]
    return [
        f"{len(runs)} runs of the arms {arms}: {', '.join(counts)}. The last checkpoint of each "
        "run is compared, never the best."
    ]


if __name__ == "__main__":
    app.run(main)
