"""Fifty who write at the same time through two nodes: nothing that was answered is lost, and lists tell the truth."""

import random
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .rest import Rest
from .support import Node

WRITERS, AGENTS, DOOMED, ROUNDS = 50, 20, 5, 14

# What each section of a shield may hold, made of a word that nobody else writes.
SECTIONS: dict[str, Callable[[str], dict[str, list[str]]]] = {
    "filesystem": lambda word: {"allowed_paths": [f"/{word}"]},
    "commands": lambda word: {"blocked_patterns": [word]},
    "network": lambda word: {"blocked_hosts": [f"{word}.example"]},
}


class Writer:
    """One who does a bit of everything, by turns through each node, and notes what it was answered.

    `notes` are the keys of souls and `sections` the contents of shields, by agent, that were accepted: of the keys none
    may be missing in the end. It has at most one agent of its own, `own`. `faults` are answers that cannot be.
    """

    def __init__(self, rests: list[Rest], number: int, shared: list[str]) -> None:
        self._rests, self._number, self._shared = rests, number, shared
        self._choice = random.Random(number)
        self.notes: dict[str, list[str]] = defaultdict(list)
        self.sections: dict[tuple[str, str], list[Any]] = defaultdict(list)
        self.own: str | None = None
        self.faults: list[Any] = []

    def run(self) -> "Writer":
        doing = (self.put, self.section, self.soul, self.put, self.soul, self.section, self.come_and_go)
        for turn in range(ROUNDS):
            rest, agent = self._rests[(self._number + turn) % 2], self._choice.choice(self._shared)
            doing[(self._number + turn) % len(doing)](rest, agent, f"w{self._number}t{turn}")
        return self

    def put(self, rest: Rest, agent: str, word: str) -> None:
        """Change all of an agent at once: what one call says stands there together."""
        section, content = self._section(word)
        body = {"name": word, "soul": {"named": word, "notes": {word: 1}}, "shield": {section: content}}
        if self._changed(rest.ask("PUT", f"/v2/agents/{agent}", body), agent):
            self.notes[agent].append(word)
            self.sections[agent, section].append(content)

    def soul(self, rest: Rest, agent: str, word: str) -> None:
        if self._changed(rest.ask("POST", f"/v2/agents/{agent}/soul", {"notes": {word: 1}}), agent):
            self.notes[agent].append(word)

    def section(self, rest: Rest, agent: str, word: str) -> None:
        section, content = self._section(word)
        if self._changed(rest.ask("PUT", f"/v2/agents/{agent}/shield", {section: content}), agent):
            self.sections[agent, section].append(content)

    def come_and_go(self, rest: Rest, _: str, word: str) -> None:
        """Have an agent, see it listed by the other node, and mostly no longer when it was deleted."""
        other = self._rests[rest is self._rests[0]]
        if self.own is not None:
            gone, self.own = self.own, None
            rest.ask("DELETE", f"/v2/agents/{gone}")
            self._see(other, gone, is_there=False)
        self.own = rest.create(name=word)["id"]
        self._see(other, self.own, is_there=True)
        if self._number < DOOMED:
            rest.ask("DELETE", f"/v2/agents/{self._shared[-1 - self._number]}")  # while others change it

    def _see(self, rest: Rest, agent: str, *, is_there: bool) -> None:
        page = rest.ask("GET", "/v2/agents?limit=100").data
        ids = [item["id"] for item in page["items"]]
        if (agent in ids) is not is_there or not len(ids) == len(set(ids)) == page["total"]:
            self.faults.append((agent, is_there, page))

    def _section(self, word: str) -> tuple[str, dict[str, list[str]]]:
        section = self._choice.choice(list(SECTIONS))
        return section, SECTIONS[section](word)

    def _changed(self, answer: Any, agent: str) -> bool:
        if answer.status != 200 and not (answer.status == 404 and agent in self._shared[-DOOMED:]):
            self.faults.append(answer)
        return bool(answer.status == 200)


def test_fifty_writers_on_twenty_agents_over_two_nodes(start_node: Callable[..., Node]) -> None:
    rests = [Rest(start_node(max_requests_per_minute=-1, fast=True)) for _ in range(2)]
    shared = [rests[0].create(name=f"agent {number}")["id"] for number in range(AGENTS)]
    with ThreadPoolExecutor(WRITERS) as pool:
        writers = list(pool.map(lambda number: Writer(rests, number, shared).run(), range(WRITERS)))
    assert [fault for writer in writers for fault in writer.faults] == []

    stay, doomed = shared[:-DOOMED], shared[-DOOMED:]
    for rest in rests:
        page = rest.ask("GET", "/v2/agents?limit=100").data
        assert sorted(item["id"] for item in page["items"]) == sorted([*stay, *(w.own for w in writers if w.own)])
        assert page["total"] == len(page["items"])
    for agent in doomed:
        assert rests[0].ask("GET", f"/v2/agents/{agent}").status == 404
    for number, agent in enumerate(stay):
        found = rests[number % 2].ask("GET", f"/v2/agents/{agent}").data
        assert sorted(found["soul"]["notes"]) == sorted(key for writer in writers for key in writer.notes[agent])
        assert found["soul"]["named"] == found["name"]
        for section in SECTIONS:
            written = [content for writer in writers for content in writer.sections[agent, section]]
            assert found["shield"].get(section) in (written or [None])
