"""Records: an agent as Redis keeps it, and what is told of it. Pure."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from ..events import moment
from .model import Agent, Status, Summary

# The fields of the hash that a record is made of; what a summary tells does without the documents, which may be long.
SUMMARY_FIELDS = ("created", "name", "mode", "last_activity", "credits_used", "state")
FIELDS = (*SUMMARY_FIELDS, "soul", "shield", "calls", "pairing", "deleted")


class Record(NamedTuple):
    """An agent's hash. Without `created` it is none of the registry, or no longer."""

    workspace: str
    id: str
    fields: Mapping[str, bytes]
    is_present: bool

    @property
    def is_created(self) -> bool:
        return "created" in self.fields

    @property
    def is_deleted(self) -> bool:
        return "deleted" in self.fields

    @property
    def version(self) -> str:
        """The call that changed it last."""
        return self.fields["calls"].decode().partition(",")[0]

    @property
    def name(self) -> str:
        return self.fields["name"].decode()

    @property
    def soul(self) -> dict[str, Any]:
        return _document(self.fields["soul"])

    @property
    def shield(self) -> dict[str, Any]:
        return _document(self.fields["shield"])

    @property
    def status(self) -> Status:
        if "state" in self.fields:
            return "error"
        return "online" if self.is_present else "offline"

    def agent(self) -> Agent:
        return Agent(
            **msgspec.structs.asdict(self.summary()),
            created_at=moment(int(self.fields["created"])),
            soul=self.soul,
            shield=self.shield,
        )

    def summary(self, status: Status | None = None) -> Summary:
        """`status` is the one by which it was found."""
        active = self.fields.get("last_activity")
        return Summary(
            id=self.id,
            name=self.name,
            status=status or self.status,
            workspace_id=self.workspace,
            mode=self.fields["mode"].decode(),
            last_activity=moment(int(active)) if active else None,
            credits_used=int(self.fields.get("credits_used", b"0")),
        )


def read(workspace: str, agent_id: str, values: Mapping[str, bytes | None], is_present: bool) -> Record:
    """A record of what Redis answered for some of `FIELDS`."""
    fields = {name: value for name, value in values.items() if value is not None}
    return Record(workspace, agent_id, fields, is_present)


def _document(raw: bytes) -> dict[str, Any]:
    document: dict[str, Any] = msgspec.json.decode(raw)
    return document
