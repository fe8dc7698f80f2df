"""Fifty who write at the same time through two nodes: nothing that was answered is lost, and lists tell the truth."""

import random
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from .rest import Rest
from .support import Node

WRITERS, AGENTS, ROUNDS = 50, 20, 12


class Told(NamedTuple):
    """What one writer was answered, and so must be there: keys of souls, agents it made, and whether lists held."""

    keys: dict[str, list[str]]
    made: list[str]
    faults: list[Any]


def write(rest: Rest, number: int, shared: list[str]) -> Told:
    """Do a bit of everything, always under keys of its own."""
    told, choice = Told(defaultdict(list), [], []), random.Random(number)
    for turn in range(ROUNDS):
        agent, key = choice.choice(shared), f"writer-{number}-{turn}"
        match turn % 6:
            case 0 | 3:
                answer = rest.ask("PUT", f"/v2/agents/{agent}", {"soul": {"notes": {key: turn}}})
                told.keys[agent].append(key)
            case 1 | 4:
                answer = rest.ask("POST", f"/v2/agents/{agent}/soul", {"notes": {key: turn}})
                told.keys[agent].append(key)
            case 2:
                section = {"filesystem": {"allowed_paths": [f"/{key}"]}}
                answer = rest.ask("PUT", f"/v2/agents/{agent}/shield", section)
            case _:
                told.made.append(rest.create(name=key)["id"])
                if choice.random() < 0.5:
                    rest.ask("DELETE", f"/v2/agents/{told.made.pop()}")
                answer = rest.ask("GET", "/v2/agents?limit=100")
                told.faults.extend(item for item in answer.data["items"] if not item["name"])
        if answer.status != 200:
            told.faults.append(answer)
    return told


def listed(rest: Rest) -> list[str]:
    """All agents, page by page."""
    page = rest.ask("GET", "/v2/agents?limit=100").data
    ids = [item["id"] for item in page["items"]]
    while len(ids) < page["total"]:
        page = rest.ask("GET", f"/v2/agents?limit=100&offset={len(ids)}").data
        assert page["items"]
        ids += [item["id"] for item in page["items"]]
    assert len(ids) == page["total"]
    return ids


def test_fifty_writers_on_twenty_agents_over_two_nodes(start_node: Callable[..., Node]) -> None:
    rests = [Rest(start_node(max_requests_per_minute=-1, fast=True)) for _ in range(2)]
    shared = [rests[0].create(name=f"agent {number}")["id"] for number in range(AGENTS)]
    rests[0].ask("PUT", f"/v2/agents/{shared[0]}/shield", {"network": {"blocked_hosts": ["10.0.0.0/8"]}})
    with ThreadPoolExecutor(WRITERS) as pool:
        told = list(pool.map(lambda number: write(rests[number % 2], number, shared), range(WRITERS)))
    assert [fault for each in told for fault in each.faults] == []
    for rest in rests:
        assert sorted(listed(rest)) == sorted(shared + [agent for each in told for agent in each.made])
    for agent in shared:
        notes = rests[0].ask("GET", f"/v2/agents/{agent}").data["soul"].get("notes", {})
        assert sorted(notes) == sorted(key for each in told for key in each.keys[agent])
    shield = rests[1].ask("GET", f"/v2/agents/{shared[0]}/shield").data
    assert shield["network"] == {"blocked_hosts": ["10.0.0.0/8"]}
