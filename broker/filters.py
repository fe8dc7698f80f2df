"""Which events somebody wants: a value, and nothing that acts."""

from typing import Any

import msgspec


class Narrow(msgspec.Struct, frozen=True, kw_only=True):
    """What an event must be besides, where it has such a field: an event without it is not concerned."""

    without_agents: frozenset[str] = frozenset()
    severities: frozenset[str] | None = None
    components: frozenset[str] | None = None

    def admits(self, event: Any) -> bool:
        """`event` is anything with an event's `agent_id` and `labels`."""
        if event.agent_id in self.without_agents:
            return False
        if self.severities is None and self.components is None:
            return True
        labels = event.labels
        return (self.severities is None or labels.severity is None or labels.severity in self.severities) and (
            self.components is None or labels.components is None or bool(labels.components & self.components)
        )


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """What an event must be to match: every part that is given holds (AND), `None` asks nothing.

    `workspaces` is always given: nobody asks for everything there is. The empty name in `agents` stands for events
    without an agent.
    """

    workspaces: frozenset[str]
    agents: frozenset[str] | None = None
    subjects: frozenset[str] | None = None
    types: frozenset[str] | None = None
    narrow: Narrow | None = None

    def matches(self, event: Any) -> bool:
        """True when `event` (anything with an event's ids, type and labels) is asked for."""
        return (
            event.workspace_id in self.workspaces
            and (self.agents is None or (event.agent_id or "") in self.agents)
            and (self.subjects is None or event.subject in self.subjects)
            and (self.types is None or event.type in self.types)
            and (self.narrow is None or self.narrow.admits(event))
        )
