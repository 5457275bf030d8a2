"""Reads, decodes and augments records for runs on other hosts.

    python -m rethink_tf.data.serve --port=5050

The run names it: --gin_param="Pipeline.services=['HOST:5050']". It reads the records by the same
paths as the run: a bucket, or a folder that both have. The run must be reachable from here, too.
Who reaches the port can have this process run TensorFlow's operations: serve in a trusted network.
"""

import signal
import socket
import sys

from absl import app, flags

FLAGS = flags.FLAGS


def _define_flags():
    flags.DEFINE_integer(
        "port",
        None,
        "Of the dispatcher; the next one is the worker's.",
        required=True,
        lower_bound=1,
        upper_bound=65534,
    )
    flags.DEFINE_string(
        "host",
        None,
        "Name or address by which runs reach this process. Default: the name of this host.",
    )


def main(argv):
    """Serves until a signal ends it."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; every value needs its --flag=")
    signals = {signal.SIGTERM, signal.SIGINT}
    # Before threads start, which inherit it: else one of them may be the one that is interrupted.
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    import tensorflow as tf  # only now: help needs none of it

    from rethink_tf.data.input import service

    tf.config.set_visible_devices([], "GPU")
    host = FLAGS.host or socket.gethostname()
    try:
        servers = service.start_server(host, FLAGS.port)
    except ValueError as error:
        sys.exit(f"error: {error}. Another --port takes the next one, too")
    setting = f"Pipeline.services=['{host}:{FLAGS.port}']"
    print(f'Serving. In the command of the run: --gin_param="{setting}"', flush=True)
    signal.sigwait(signals)
    del servers


if __name__ == "__main__":
    _define_flags()
    app.run(main)
