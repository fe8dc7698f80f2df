"""What a rule found against an action."""

from typing import Literal, NamedTuple

# In place of an entry where nobody can tell what the action does.
UNREADABLE = "unreadable"


class Finding(NamedTuple):
    """`why` is the list that forbids the action, or that nobody can judge it; `pattern` is the blocked entry, else the
    name of the allowed list or `UNREADABLE`. `texts` is what the action was read as: paths, a command's spellings, a
    host's names and addresses."""

    why: Literal["allowed", "blocked", "unreadable"]
    pattern: str
    texts: list[bytes]
