#!/usr/bin/env bash
# Runs N workers of one command on this machine, and starts them again when one is lost:
#   launch/local_workers.sh 2 -- python -m rethink_tf.train --gin_file=quickstart.gin \
#     --gin_param="make_strategy.name='multi_worker_mirrored'"
# All options: launch/local_workers.sh --help. PYTHON chooses the interpreter (python3 by default).
set -euo pipefail
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH="$repository${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" -m launch.local_workers "$@"
