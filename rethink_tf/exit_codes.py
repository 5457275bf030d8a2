"""The exit codes of the commands: what a launcher or a person does next.

A launcher starts a command again after AGAIN, and after a process that a signal killed (128 + its
number): the same command goes on from the newest checkpoint. It does not after any other code.
"""

DONE = 0

# Refused, or failed in a way that repeats: the user has to change something first.
REFUSED = 1

# A run that was stopped from outside (SIGTERM, preemption) after it saved, or that lost one of its
# workers. sysexits.h calls 75 a temporary failure: "the user is invited to retry".
AGAIN = 75

# Stopped by the user (Ctrl-C) after it saved. What shells report of SIGINT, 128 + 2.
INTERRUPTED = 130
