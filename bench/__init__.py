"""Measurements: what timezero takes, side by side with what others take for the same."""

import signal
import sys

# One that is ended takes its scratch files, gigabytes of them, and its servers with it.
if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
