"""The fleet: every file in deploy/ as it stands, under the programs that it is written for.

Two nodes behind HAProxy (and nginx), one Redis, a Prometheus that scrapes them. `make fleet` shows a person the same.
"""

import contextlib
import json
import re
import subprocess
import urllib.parse
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from broker import Broker, Event

from .agnt5 import opened, refusal
from .freeagentics import FreeAgentics, freeagentics
from .roll.fleet import DEPLOY, Fleet, at, connections, needs, nginx_before
from .support import SECRET, Client, Node, free_port, http, maxicore, private_redis, token, until


def start_fleet() -> Any:
    needs("haproxy")
    needs("prometheus")
    return Fleet(jwt_secret=SECRET, drain_wait_seconds=3, drain_seconds=2)


@pytest.fixture(scope="module")
def fleet() -> Iterator[Any]:
    with start_fleet() as fleet:
        yield fleet


def progress(*steps: int) -> list[Event]:
    return [
        Event(
            type="task.progress",
            workspace_id="ws-456",
            agent_id=f"agent-{step % 3}",
            data={"task_id": "t", "step": step},
        )
        for step in steps
    ]


@contextlib.asynccontextmanager
async def watchers_on_both_nodes(fleet: Any, balancer: Node) -> AsyncIterator[list[Client]]:
    """Clients that came through the balancer and watch the workspace: six, or more until each node has one."""
    before = connections(fleet)
    async with contextlib.AsyncExitStack() as open_clients:
        clients: list[Client] = []
        while len(clients) < 6 or any(count <= before[name] for name, count in connections(fleet).items()):
            assert len(clients) < 60, f"the balancer leaves a node out: {connections(fleet)}"
            client = await open_clients.enter_async_context(maxicore(balancer))
            await client.subscribe(workspace_id="ws-456")
            await client.synchronise()
            clients.append(client)
        yield clients
    await until(lambda: connections(fleet) == before, what="the nodes to see the clients leave")


async def publish_and_see_it_everywhere(fleet: Any, clients: list[Client]) -> None:
    steps = list(range(400))
    async with Broker.connect(fleet.redis.url) as broker:
        for start in range(0, 400, 50):
            await broker.publish_many(progress(*steps[start : start + 50]))
    for client in clients:
        assert [(await client.receive())["data"]["step"] for _ in steps] == steps
        assert await client.synchronise() == [], "more than was published"


# Delivery


@pytest.mark.anyio
async def test_every_client_of_either_node_gets_every_event_once_and_prometheus_counts_the_clients(fleet: Any) -> None:
    async with watchers_on_both_nodes(fleet, at(fleet.balancer)) as clients:
        await publish_and_see_it_everywhere(fleet, clients)
        by_instance = {f"127.0.0.1:{node.port}": connections(fleet)[node.name] for node in fleet.nodes}
        assert sum(by_instance.values()) == len(clients)
        await until(lambda: ask_prometheus(fleet, "sum by (instance) (trunkline_connections)") == by_instance, 30)
        assert ask_prometheus(fleet, 'up{job="trunkline"}') == dict.fromkeys(by_instance, 1)


def ask_prometheus(fleet: Any, query: str) -> dict[str, float]:
    """The value of each instance."""
    status, _, body = http(f"{fleet.prometheus.url}/api/v1/query?" + urllib.parse.urlencode({"query": query}))
    assert status == 200, body
    return {row["metric"]["instance"]: float(row["value"][1]) for row in json.loads(body)["data"]["result"]}


@pytest.fixture
def start_nginx(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """nginx from nginx.conf in front of these ports."""
    with contextlib.ExitStack() as lives:
        yield lambda *nodes: lives.enter_context(nginx_before(tmp_path, *nodes))


@pytest.mark.anyio
async def test_nginx_balances_as_haproxy_does(fleet: Any, start_nginx: Callable[..., Any]) -> None:
    nginx = start_nginx(*(node.port for node in fleet.nodes))
    async with watchers_on_both_nodes(fleet, at(nginx)) as clients:
        await publish_and_see_it_everywhere(fleet, clients)
    assert http(nginx.url + "/metrics")[0] == 404


# Who comes


@pytest.mark.anyio
@pytest.mark.parametrize("program", ["haproxy", "nginx"])
async def test_an_address_is_the_clients_own_behind_each_balancer_and_no_forged_header_makes_it_another(
    fleet: Any, program: str, request: pytest.FixtureRequest
) -> None:
    """The balancers say who came to them, and the nodes, which trust them alone, admit twenty of each address."""
    balancer = fleet.balancer
    if program == "nginx":
        balancer = request.getfixturevalue("start_nginx")(*(node.port for node in fleet.nodes))
    before = connections(fleet)
    crowded, quiet = ("127.0.1.1", "127.0.1.2") if program == "haproxy" else ("127.0.2.1", "127.0.2.2")
    async with contextlib.AsyncExitStack() as open_clients:

        async def join(address: str, forged: str | None = None) -> FreeAgentics:
            headers = {"X-Forwarded-For": forged} if forged else {}
            client = freeagentics(at(balancer), local_addr=(address, 0), additional_headers=headers)
            return await open_clients.enter_async_context(client)

        for number in range(20):
            client = await join(crowded, f"203.0.113.{number}" if number % 2 else None)
            assert client.greeting[0]["type"] == "connection_established"
        for forged in (None, "203.0.113.99", "127.0.0.1", f"{quiet}, 127.0.0.1", "2001:db8::1"):
            refused = await join(crowded, forged)
            assert refused.greeting[0]["data"]["error_code"] == "CONNECTION_LIMIT_EXCEEDED"
            assert (await refused.closed())[0] == 1013
        # Who is there already takes nobody else's place, by whatever name.
        other = await join(quiet, crowded)
        assert other.greeting[0]["type"] == "connection_established"
        assert all(count > before[name] for name, count in connections(fleet).items()), "a node is left out"
    await until(lambda: connections(fleet) == before, what="the nodes to see the clients leave")


# What must not leave


@pytest.mark.anyio
async def test_no_log_of_the_fleet_holds_a_token(fleet: Any) -> None:
    secret = token()
    async with maxicore(at(fleet.balancer), secret) as client:
        await client.synchronise()
    assert http(f"{fleet.balancer.url}/nowhere?token={secret}")[0] == 404
    await until(lambda: " GET /v2/ws " in fleet.balancer.output() and " GET /nowhere " in fleet.balancer.output())
    for member in fleet.members:
        assert secret not in member.output(), member.name


@pytest.mark.anyio
async def test_nginx_passes_over_a_dead_node_and_logs_no_token_even_then(
    fleet: Any, start_nginx: Callable[..., Any]
) -> None:
    dead, secret = free_port(), token()
    nginx = start_nginx(dead, fleet.nodes[1].port)

    async def a_client_was_passed_over() -> bool:
        async with maxicore(at(nginx), secret) as client:
            await client.synchronise()
        return any(f":{dead}, " in line and " GET /v2/ws " in line for line in nginx.output().splitlines())

    await until(a_client_was_passed_over)
    assert secret not in nginx.output()


@pytest.mark.anyio
async def test_workflows_run_behind_each_balancer_and_no_log_holds_a_key(
    fleet: Any, start_nginx: Callable[..., Any]
) -> None:
    nginx = start_nginx(*(node.port for node in fleet.nodes))
    for balancer in (fleet.balancer, nginx):
        front = Node(fleet.redis.url, "trunkline", port=balancer.port)
        async with opened([front]) as shop, shop.crew(), shop.client() as client:
            await client.run("echo", {"query": "react"}, connection_id="ws_1")
            assert (await client.end())["data"]["details"]["output"]["parameters"] == {"query": "react"}
            refused = await refusal(front, shop.endpoint, "tlk_no_such_key")
            assert (refused.status, json.loads(refused.body)["error"]["code"]) == (401, "INVALID_API_KEY")
            for member in (*fleet.members, nginx):
                assert shop.key not in member.output(), member.name


def test_figures_are_not_for_the_balancers_clients(fleet: Any) -> None:
    assert http(fleet.balancer.url + "/metrics")[0] == 404
    assert http(fleet.nodes[0].url + "/metrics")[0] == 200


# The files


def checked(*command: str, **environment: str) -> str:
    done = subprocess.run(command, env=environment or None, capture_output=True, check=False, text=True, cwd=DEPLOY)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_haproxy_takes_its_file_without_a_warning() -> None:
    address = {"LISTEN": "127.0.0.1:1", "NODE_1": "127.0.0.1:2", "NODE_2": "127.0.0.1:3"}
    assert "WARNING" not in checked(needs("haproxy"), "-c", "-f", "haproxy.cfg", **address)


def test_prometheus_takes_its_files_without_a_warning() -> None:
    promtool = needs("promtool", "prometheus")
    assert "WARNING" not in checked(promtool, "check", "config", "prometheus.yml")
    checked(promtool, "check", "rules", "alerts.yml")


def test_redis_takes_its_file() -> None:
    with private_redis(include=DEPLOY / "redis.conf") as redis:
        answer = checked(needs("redis-cli", "redis-tools"), "-p", str(redis.port), "config", "get", "appendonly")
        assert answer.split() == ["appendonly", "yes"]


def test_every_metric_of_an_alert_is_there_from_the_start(fleet: Any) -> None:
    """A counter that appears with its first 1 has not grown, as Prometheus sees it, and no alert fires."""
    wanted = set(re.findall(r"\btrunkline_\w+", (DEPLOY / "alerts.yml").read_text()))
    figures = http(fleet.nodes[1].url + "/metrics")[2].decode()
    assert wanted == {name for name in wanted if re.search(rf"^{name}[{{ ]", figures, re.MULTILINE)}
    assert re.search(r'^trunkline_gaps_total{outcome="said"} ', figures, re.MULTILINE)


HEALTHY = {
    'up{job="trunkline",instance="a"}': "1x40",
    'trunkline_connections{instance="a",dialect="maxicore"}': "1000x40",
    'trunkline_feed_up{instance="a"}': "1x40",
    'trunkline_feed_reconnects_total{instance="a"}': "7x40",
    'trunkline_gaps_total{instance="a",outcome="healed"}': "0+1x40",
    'trunkline_gaps_total{instance="a",outcome="said"}': "3x40",
    'trunkline_slow_consumers_total{instance="a",dialect="maxicore"}': "0+1x40",
    'trunkline_delivery_lag_seconds_bucket{instance="a",le="0.05"}': "0+100x40",
    'trunkline_delivery_lag_seconds_bucket{instance="a",le="1"}': "0+100x40",
    'trunkline_delivery_lag_seconds_bucket{instance="a",le="+Inf"}': "0+100x40",
    'trunkline_event_loop_lag_seconds{instance="a"}': "0.01x40",
    'trunkline_redis_errors_total{instance="a"}': "5x40",
}
"""A sample per half minute, as promtool writes them: a value, `x` and how often, `+` what it grows by."""


@pytest.mark.parametrize(
    ("change", "firing"),
    [
        ({}, set()),
        ({'up{job="trunkline",instance="b"}': "1x10 0x30"}, {"TrunklineNodeDown"}),
        ({'up{job="trunkline",instance="a"}': "1x10 0x30"}, {"TrunklineNodeDown", "TrunklineDown"}),
        ({'up{job="trunkline",instance="a"}': "1x10 stale"}, {"TrunklineDown"}),
        ({'trunkline_feed_up{instance="a"}': "1x20 0x20"}, {"TrunklineFeedDown"}),
        ({'trunkline_feed_reconnects_total{instance="a"}': "7x20 8x20"}, set()),
        ({'trunkline_feed_reconnects_total{instance="a"}': "0+1x40"}, {"TrunklineFeedUnstable"}),
        ({'trunkline_gaps_total{instance="a",outcome="said"}': "3x26 4x14"}, {"TrunklineEventsLost"}),
        ({'trunkline_slow_consumers_total{instance="a",dialect="maxicore"}': "0+5x40"}, {"TrunklineSlowConsumers"}),
        ({'trunkline_delivery_lag_seconds_bucket{instance="a",le="0.05"}': "0+98x40"}, {"TrunklineLag"}),
        ({'trunkline_event_loop_lag_seconds{instance="a"}': "0.2x40"}, {"TrunklineEventLoopLag"}),
        ({'trunkline_redis_errors_total{instance="a"}': "5+1x40"}, {"TrunklineRedisErrors"}),
    ],
)
def test_an_alert_fires_when_it_should_and_no_other_does(
    change: dict[str, str], firing: set[str], tmp_path: Path
) -> None:
    series = [{"series": name, "values": values} for name, values in (HEALTHY | change).items()]
    expected = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(firing)]
    question = 'count by (alertname) (ALERTS{alertstate="firing"})'
    test = {
        "interval": "30s",
        "input_series": series,
        "promql_expr_test": [{"expr": question, "eval_time": "15m", "exp_samples": expected}],
    }
    # JSON is YAML too.
    (tmp_path / "test.yml").write_text(json.dumps({"rule_files": [str(DEPLOY / "alerts.yml")], "tests": [test]}))
    checked(needs("promtool", "prometheus"), "test", "rules", str(tmp_path / "test.yml"))
