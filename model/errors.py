"""The one kind of error that is that a person can fix."""


class KodaError(Exception):
    """What is wrong, where, and what would be right: shown as `koda: …`, without a traceback, and never retried."""
