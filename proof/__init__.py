"""Proof that a backup is the state of one instant, from outside: a load, its logs, and the oracle that judges them.

Shares no code with timezero. Used by the tests and by the demo.
"""
