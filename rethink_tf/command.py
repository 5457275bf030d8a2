"""How a command that trains ends: in which words, and with which of the `exit_codes`."""

import re
import sys

from absl import logging

from rethink_tf import config, console, exit_codes, files
from rethink_tf.data.input.reading import DataError
from rethink_tf.data.input.service import ServiceLostError
from rethink_tf.training import stopping, workers
from rethink_tf.training.health import NonFiniteLossError

_GOES_ON = "The same command goes on from the newest checkpoint."


def run_to_end(run):
    """Runs what trains, and ends the process.

    Args:
        run: callable taking when_built, which it calls once everything is built and checked.
    """
    built = []
    try:
        run(lambda: built.append(True))
    except (ValueError, TypeError, OSError, NonFiniteLossError) as error:
        # Before the first step, an error of value is in the settings or the data. From then on
        # only a diverged run, records that do not read and a full disk are the user's errors.
        if built and not isinstance(error, (NonFiniteLossError, DataError, files.DiskFullError)):
            raise
        logging.debug("Where it was raised:", exc_info=True)
        _end(f"error: {explain(error)}", exit_codes.REFUSED)
    except stopping.Stopped as stopped:
        _end(f"Stopped by {stopped}. {_GOES_ON}", stopped.exit_code)
    except (workers.WorkerLostError, ServiceLostError) as error:
        _end(f"error: {error}. {_GOES_ON}", exit_codes.AGAIN)
    except KeyboardInterrupt:
        _end(f"\nStopped by Ctrl-C. {_GOES_ON}", exit_codes.INTERRUPTED)
    console.leave(exit_codes.DONE)


def _end(reason, exit_code):
    print(reason, file=sys.stderr)
    console.leave(exit_code)


def explain(error):
    """Returns an error's message, in place of gin's lines on calls with the bindings concerned.

    Args:
        error: an exception that the user's files or flags caused.
    """
    message = _without_layer(str(error))
    call = re.search(r"\n\s*In call to configurable '(\S+)'", message)
    if not call:
        return message
    message = message[: call.start()]
    if not isinstance(error, TypeError):
        return message
    return (
        f"{call[1]} cannot be made with its bindings ({message}): {config.bindings_of(call[1])}. "
        "With -v=1, the log says where."
    )


def _without_layer(message):
    """Returns what was raised inside a Keras layer without the lines that Keras puts around it."""
    inside = (
        r"Exception encountered when calling .*\n+((?s:.*?))\n+Call arguments received by (?s:.*)"
    )
    found = re.fullmatch(inside, message)
    return _without_layer(found[1]) if found else message
