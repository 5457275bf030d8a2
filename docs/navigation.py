"""A hook of mkdocs: pages that the navigation does not list yet come under "More"."""

import pathlib

MORE = "More"


def on_config(config):
    """Adds the pages of the documentation's folder that `nav` of mkdocs.yml leaves out.

    Args:
        config: of mkdocs.

    Returns:
        The same, with a further section if there is such a page.
    """
    folder = pathlib.Path(config["docs_dir"])
    listed = set(_pages(config["nav"]))
    there = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.md"))
    if more := [page for page in there if page not in listed]:
        config["nav"].append({MORE: more})
    return config


def _pages(entry):
    """Yields the paths that an entry of `nav` names."""
    if isinstance(entry, str):
        yield entry
    for each in entry.values() if isinstance(entry, dict) else entry:
        if not isinstance(entry, str):
            yield from _pages(each)
