"""What a roll was to its clients, in numbers. Pure: journals in, figures out."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from .client import Absence, Journal


class Phase(NamedTuple):
    """A part of the run. `cpu` is what each program used in it, `window` how long its closes may take; in seconds."""

    name: str
    started: float
    ended: float
    cpu: Mapping[str, float]
    window: float = 0.0


class Latency(NamedTuple):
    """From publish to the client, in seconds, whatever lay between."""

    p50: float
    p99: float
    most: float


class Figures(NamedTuple):
    """One phase. `closes` counts by code, `refused` handshakes by status."""

    phase: Phase
    deliveries: int
    all: Latency
    stayed: Latency  # of clients that had a connection all the time
    closes: Counter[int]
    crowding: float  # closes in the busiest second, as a multiple of an even share
    refused: Counter[int]
    moved: int
    absence_p50: float
    longest_absence: float


def read(journal: Journal, phases: Iterable[Phase]) -> list[Figures]:
    return [_of(journal, phase) for phase in phases]


def _of(journal: Journal, phase: Phase) -> Figures:
    absences = [absence for absence in journal.absences if phase.started <= absence.started < phase.ended]
    movers = {absence.client for absence in absences}
    every, stayed = [], []
    for client, sent, received in zip(journal.clients, journal.sent, journal.received, strict=True):
        if phase.started <= received < phase.ended:
            every.append(received - sent)
            if client not in movers:
                stayed.append(received - sent)
    endings = [ending for ending in journal.endings if phase.started <= ending.at < phase.ended]
    closes = [ending for ending in endings if ending.status == 101]
    return Figures(
        phase,
        deliveries=len(every),
        all=_latency(every),
        stayed=_latency(stayed),
        closes=Counter(ending.code for ending in closes),
        crowding=crowding([ending.at for ending in closes], phase.window),
        refused=Counter(ending.status for ending in endings if ending.status != 101),
        moved=len(movers),
        absence_p50=_quantile(sorted(map(_length, absences)), 0.5),
        longest_absence=max(map(_length, absences), default=0.0),
    )


def crowding(times: Iterable[float], window: float) -> float:
    """How many fall in the busiest second, wherever it begins, to how many would if they were even over `window`."""
    times = sorted(times)
    if not times or not window:
        return 0.0
    first = most = 0
    for last, time in enumerate(times):
        while time - times[first] >= 1:
            first += 1
        most = max(most, last - first + 1)
    return most * max(window, 1.0) / len(times)


def _length(absence: Absence) -> float:
    return absence.ended - absence.started


def _latency(seconds: list[float]) -> Latency:
    seconds.sort()
    return Latency(_quantile(seconds, 0.5), _quantile(seconds, 0.99), seconds[-1] if seconds else 0.0)


def _quantile(values: Sequence[float], share: float) -> float:
    """Of sorted values; 0 of none."""
    return values[min(len(values) - 1, int(share * len(values)))] if values else 0.0
