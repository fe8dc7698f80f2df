"""What a connection counts against, over the fleet: its user and its address, or its endpoint. Pure."""

from typing import NamedTuple

from broker.limits import Pace, Place

from .addresses import holder
from .limits import MINUTE, UNLIMITED, Limits


class Wanted(NamedTuple):
    """Places that a connection must find, its user's first, and the pace at which its user may come."""

    places: tuple[Place, ...]
    pace: Pace | None

    def __bool__(self) -> bool:
        return bool(self.places) or self.pace is not None


def wanted(dialect: str, limits: Limits, user: str, address: str) -> Wanted:
    """Where a limit is lifted the user's connections are counted all the same: a client is told how many there are."""
    whose = f"{dialect}:user:{user}"
    places = []
    if limits.max_connections_per_user is not None:
        places.append(Place(whose, limits.max_connections_per_user))
    if (allowed := limits.max_connections_per_address) is not None and allowed < UNLIMITED:
        places.append(Place(f"{dialect}:address:{holder(address)}", allowed))
    allowed = limits.max_connects_per_minute
    pace = Pace(whose, allowed, MINUTE) if allowed is not None and allowed < UNLIMITED else None
    return Wanted(tuple(places), pace)


def of_endpoint(dialect: str, limits: Limits, endpoint: str) -> Wanted:
    """A place among an endpoint's connections."""
    allowed = limits.max_connections_per_endpoint
    if allowed is None or allowed >= UNLIMITED:
        return Wanted((), None)
    return Wanted((Place(f"{dialect}:endpoint:{endpoint}", allowed),), None)


def limit_name(full: Place | Pace | None) -> str:
    """The setting that refused a connection, for the metric."""
    if isinstance(full, Place):
        return f"max_connections_per_{full.holder.split(':')[1]}"
    return "max_connects_per_minute"
