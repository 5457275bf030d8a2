"""Another experiment's gin files, parsed and read without touching what is bound in this process.

This module imports no TensorFlow.
"""

import contextlib
from collections.abc import Iterator, Sequence

from gin import config as gin_config

from rethink_tf import config

# gin's tables of what is bound, was used and was made.
_TABLES = ("_CONFIG", "_SINGLETONS", "_CONSTANTS", "_IMPORTS", "_OPERATIVE_CONFIG")


@contextlib.contextmanager
def parsed(gin_files: Sequence[str], gin_params: Sequence[str] = ()) -> Iterator[None]:
    """Within it, only these gin files and bindings are in force; then what was before.

    What is made within keeps its values. One thread at a time may be within.

    Args:
        gin_files: as of `config.parse`.
        gin_params: the same.

    Raises:
        ConfigError: as `config.parse`.
    """
    held = {name: _content(getattr(gin_config, name)) for name in _TABLES}
    sources, was_locked = config._sources, gin_config.config_is_locked()
    # gin's own objects stay: other modules hold references to them.
    prefixes = list(gin_config._LOCATION_PREFIXES)
    try:
        config.parse(gin_files, gin_params)
        yield
    finally:
        for name, values in held.items():
            table = getattr(gin_config, name)
            table.clear()
            for value in values:
                # Sets hold values, the others names and values.
                table.add(value) if isinstance(table, set) else table.__setitem__(*value)
        gin_config._set_config_is_locked(was_locked)
        gin_config._LOCATION_PREFIXES[:] = prefixes
        config._sources = sources


def _content(table):
    return list(table) if isinstance(table, set) else list(table.items())
