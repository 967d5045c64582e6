"""How a process of Koda's ends; its supervisor decides by that what to do next."""

DONE = 0
PREEMPTED = 75  # it was stopped, saved, and left
ROLLED_BACK = 76  # bad steps in a row: start again, after that window of data
UNUSABLE = 78  # a configuration that no retry can fix; the last line of the log has the reason
