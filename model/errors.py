"""The one kind of error that is that a person can fix."""


class KodaError(Exception):
    """What is wrong, where, and what would be right: shown as `koda: …`, without a traceback, and never retried."""


def one_line(error: Exception) -> str:
    """An exception of a library as the cause of something else: its kind and the first line of its message."""
    return ": ".join(filter(None, (type(error).__name__, str(error).strip().partition("\n")[0])))


def out_of_memory(error: Exception) -> bool:
    """Did Python have no memory left, or XLA, which says so in the words of its status?"""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
