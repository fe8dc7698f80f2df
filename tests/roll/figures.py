"""What a roll was to its clients, in numbers. Pure: journals in, figures out."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from .client import Absence, Journal

MAX_ABSENCE_SECONDS = 5.0
MAX_CROWDING = 2.0


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
        absence_p50=quantile(sorted(map(_length, absences)), 0.5),
        longest_absence=max(map(_length, absences), default=0.0),
    )


def faults(figures: Iterable[Figures], journal: Journal) -> list[str]:
    """What must not be, a line each: an event lost, doubled or reordered, a gap, who is away for long, a crowd."""
    found = [f"events {kind}: {number}" for kind, number in journal.wrong.items() if number]
    found += [f"gaps said: {journal.gaps}"] if journal.gaps else []
    for one in figures:
        if one.longest_absence > MAX_ABSENCE_SECONDS:
            found.append(f"{one.phase.name}: somebody was without a connection for {one.longest_absence:.1f} s")
        if one.crowding > MAX_CROWDING:
            found.append(f"{one.phase.name}: a second had {one.crowding:.1f} times its share of the closes")
    return found


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
    return Latency(quantile(seconds, 0.5), quantile(seconds, 0.99), seconds[-1] if seconds else 0.0)


def quantile(values: Sequence[float], share: float) -> float:
    """Of sorted values; 0 of none."""
    return values[min(len(values) - 1, int(share * len(values)))] if values else 0.0
