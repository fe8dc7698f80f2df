"""Places: up to where a watch has everything, by workspace, whatever its connections were."""

from collections.abc import Collection, Mapping

from ..positions import is_after
from .words import Complete


class Places:
    """Positions only grow, but where a gap was said: Redis may have gone on with another history.

    A token of one workspace is told its position without a name, which is learned from the first event or gap.
    """

    def __init__(self, since: str | Mapping[str, str] | None, workspaces: Collection[str] | None) -> None:
        self._positions: dict[str, str] = {}
        self._unnamed: str | None = None
        self._lost: set[str] = set()  # a gap was said there, and nothing has come since
        if isinstance(since, Mapping):
            self._positions.update(since)
        elif since is not None and workspaces is not None and len(workspaces) == 1:
            self._positions[next(iter(workspaces))] = since
        else:
            self._unnamed = since

    @property
    def since(self) -> str | Mapping[str, str] | None:
        """What to resume from; None: from now on."""
        return dict(self._positions) or self._unnamed

    def take(self, workspace: str, position: str) -> bool:
        """Note an event. False for one that was taken before."""
        self._learn(workspace)
        return self._reach(workspace, position)

    def lose(self, workspace: str) -> bool:
        """Note a gap. False for one that was said already, when nothing has come since."""
        self._learn(workspace)
        is_new = workspace not in self._lost
        self._lost.add(workspace)
        return is_new

    def complete(self, told: Complete) -> None:
        """Note that everything up to `told` has come."""
        if isinstance(told, dict):
            for workspace, position in told.items():
                self._reach(workspace, position)
        elif told is not None and self._positions:
            self._reach(next(iter(self._positions)), told)
        elif told is not None:
            self._unnamed = told

    def _reach(self, workspace: str, position: str) -> bool:
        before = self._positions.get(workspace)
        if before is not None and workspace not in self._lost and not is_after(position, before):
            return False
        self._positions[workspace] = position
        self._lost.discard(workspace)
        return True

    def _learn(self, workspace: str) -> None:
        if self._unnamed is not None:
            self._positions[workspace], self._unnamed = self._unnamed, None
