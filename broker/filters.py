"""Which events somebody wants: a value, and nothing that acts."""

from typing import Any

import msgspec


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """What an event must be to match: every part that is given holds (AND), `None` asks nothing.

    `workspaces` is always given: nobody asks for everything there is. The empty name in `agents` stands for events
    without an agent.
    """

    workspaces: frozenset[str]
    agents: frozenset[str] | None = None
    subjects: frozenset[str] | None = None
    types: frozenset[str] | None = None

    def matches(self, event: Any) -> bool:
        """True when `event` (anything with an event's ids and type) is asked for."""
        return (
            event.workspace_id in self.workspaces
            and (self.agents is None or (event.agent_id or "") in self.agents)
            and (self.subjects is None or event.subject in self.subjects)
            and (self.types is None or event.type in self.types)
        )
