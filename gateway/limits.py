"""What one client may have and do. Pure figures: a dialect states what its document promises, settings replace them."""

import msgspec

from .settings import Settings

MINUTE = 60.0
SECOND = 1.0

# Connections are counted even if they have no limit: a client is told how many its user has.
UNLIMITED = 2**31


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of a dialect in one profile. None: the protocol has no such limit.

    Those of users, addresses and endpoints hold over all nodes, those of connections on the one node that has it.
    """

    max_message_bytes: int
    max_connections_per_user: int | None = None
    max_connections_per_address: int | None = None
    max_connections_per_endpoint: int | None = None
    max_connects_per_minute: int | None = None  # of one user
    max_messages_per_minute: int | None = None  # on one connection; in a minute or in a second
    max_messages_per_second: int | None = None
    max_user_messages_per_minute: int | None = None
    max_subscriptions: int | None = None
    max_event_types: int | None = None
    max_filter_values: int = 2000  # ids in all subscriptions of a connection together
    max_errors_in_row: int = 10
    max_pings_unanswered: int = 3
    flood_margin: int = 0  # messages past twice the limit that are still refused one by one
    may_idle: bool = True  # is a connection kept that says and hears nothing?
    warn_seconds: float = 0.0  # before a token expires; 0: no warning

    def under(self, settings: Settings) -> "Limits":
        """With the figures that `settings` give: 0 leaves the protocol's own, -1 lifts a limit; none is invented."""
        replaced = {
            name: given if given > 0 else UNLIMITED if name.startswith("max_connect") else None
            for name in self.__struct_fields__
            if (given := getattr(settings, name, 0)) and getattr(self, name) is not None
        }
        return msgspec.structs.replace(self, **replaced)

    @property
    def pace(self) -> tuple[int | None, float]:
        """Messages that a connection may send, and within how many seconds."""
        if self.max_messages_per_second is not None:
            return self.max_messages_per_second, SECOND
        return self.max_messages_per_minute, MINUTE
