"""The one kind of error that is a person's to mend."""


class KodaError(Exception):
    """What is wrong, where, and what would be right: shown as `koda: …`, without a traceback, and never retried."""
