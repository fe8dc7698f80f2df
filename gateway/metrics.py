"""What a fleet's operator can see: one table of metrics, and the figures behind it.

Counting is adding to an integer, per event, batch or group, never per delivered message; Prometheus' own objects are
made when it asks. No label grows with users, agents or workspaces.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from .dialects import ALL

PREFIX = "trunkline_"


def _unit(name: str) -> str:
    """The unit that a metric's name ends with; figures of things have none."""
    return next((unit for unit in ("seconds", "bytes") if name.endswith(f"_{unit}")), "")


class Counter:
    """A figure that only grows, for each combination of label values."""

    __slots__ = ("help", "labels", "name", "values")

    def __init__(self, name: str, help: str, *labels: str) -> None:  # noqa: A002 (Prometheus' word)
        self.name = name
        self.help = help
        self.labels = labels
        self.values: dict[tuple[str, ...], float] = {} if labels else {(): 0}

    def add(self, *values: str, amount: float = 1) -> None:
        self.values[values] = self.values.get(values, 0) + amount

    def set(self, *values: str, amount: float) -> None:
        """For what is counted elsewhere."""
        self.values[values] = amount

    def collect(self) -> Metric:
        family = CounterMetricFamily(PREFIX + self.name, self.help, labels=self.labels, unit=_unit(self.name))
        for values, amount in self.values.items():
            family.add_metric(values, amount)
        return family


class Gauge:
    """A figure that is asked for when Prometheus asks; by label value, or a single one under `""`."""

    __slots__ = ("help", "labels", "name", "read")

    def __init__(self, name: str, help: str, *labels: str) -> None:  # noqa: A002
        self.name = name
        self.help = help
        self.labels = labels
        self.read: Callable[[], Mapping[str, float]] = dict

    def collect(self) -> Metric:
        family = GaugeMetricFamily(PREFIX + self.name, self.help, labels=self.labels, unit=_unit(self.name))
        for value, amount in self.read().items():
            family.add_metric([value] if self.labels else [], amount)
        return family


class Histogram:
    """Observations by upper bound."""

    __slots__ = ("_bounds", "_counts", "_sum", "help", "name")

    def __init__(self, name: str, help: str, bounds: tuple[float, ...]) -> None:  # noqa: A002
        self.name = name
        self.help = help
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def collect(self) -> Metric:
        bounds = [*(f"{bound:g}" for bound in self._bounds), "+Inf"]
        buckets = list(zip(bounds, map(float, accumulate(self._counts)), strict=True))
        family = HistogramMetricFamily(PREFIX + self.name, self.help, unit=_unit(self.name))
        family.add_metric([], buckets, self._sum)
        return family


_LAG_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SIZE_BOUNDS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)


class Metrics(Collector):
    """The table. Each attribute is one metric."""

    def __init__(self) -> None:
        self.connections = Gauge("connections", "WebSocket connections open now", "dialect")
        self.opened = Counter("connections_opened", "WebSocket connections opened", "dialect")
        self.closed = Counter(
            "connections_closed", "WebSocket connections closed, by the close code that ended them", "dialect", "code"
        )
        self.handshakes_refused = Counter(
            "handshakes_refused", "WebSocket handshakes answered with an HTTP error", "status"
        )
        self.auth_failures = Counter("auth_failures", "Tokens that were not accepted, by reason", "reason")
        self.client_versions = Counter(
            "client_versions", "Connections whose client said its version, by major version", "dialect", "major"
        )
        self.refused = Counter("connections_refused", "Connections that found no place, by limit", "dialect", "limit")
        self.leases = Gauge("leases", "Places among the fleet's limits that this node's connections hold")
        self.limit_decisions = Counter(
            "limit_decisions", "Messages counted over the fleet, by who decided: Redis, or the node without it", "by"
        )
        self.commands = Counter(
            "commands", "Commands by what became of them: done, failed, timeout or why they were not sent", "outcome"
        )
        self.runs = Counter(
            "runs",
            "What clients asked about runs, by what came of it: started, known, resumed, cancelled, told its worker, "
            "ended, or why it could not be",
            "outcome",
        )
        self.http_requests = Counter(
            "http_requests",
            "Requests under /v2, by the status of their answer; left: the client did not wait",
            "status",
        )
        self.received = Counter("events_received", "Events that came from Redis")
        self.rejected = Counter(
            "events_rejected", "Messages on our channels that were no valid event, and were dropped"
        )
        self.delivered = Counter(
            "events_delivered", "Events written to clients, each counted once per client", "dialect"
        )
        self.sent_bytes = Counter("sent_bytes", "Bytes of event frames written to clients", "dialect")
        self.lag = Histogram(
            "delivery_lag_seconds",
            "Time in seconds from the publish of a batch's oldest event, by Redis' clock, to its write to the sockets",
            _LAG_BOUNDS,
        )
        self.batch = Histogram("batch_events", "Events handed on together, of one read from Redis", _SIZE_BOUNDS)
        self.groups = Gauge("interest_groups", "Groups of connections that share their frames")
        self.channels = Gauge("channels", "Redis channels subscribed")
        self.feed_up = Gauge(
            "feed_up",
            "1 while the subscription to Redis (in a Cluster: to each master) stands and brings what is published, "
            "else 0",
        )
        self.reconnects = Counter("feed_reconnects", "Times that the subscription to Redis was lost and made again")
        self.feed_probes = Counter(
            "feed_probes",
            "What the node published to itself: heard, missed (the subscription was deaf, and is made anew), or unsent "
            "since Redis did not take it",
            "outcome",
        )
        self.gaps = Counter(
            "gaps",
            "Holes in what Redis sent: healed from the log, or said to clients since the log had lost them",
            "outcome",
        )
        self.healed_events = Counter("healed_events", "Events that were missed live and read from the log")
        self.resumes = Counter(
            "resumes", "Clients that came back with a position: complete, or told of a gap", "outcome"
        )
        self.slow_consumers = Counter("slow_consumers", "Connections closed since the client did not read", "dialect")
        self.redis_errors = Counter("redis_errors", "Failed checks of Redis and lost subscriptions")
        self.loop_lag = Gauge(
            "event_loop_lag_seconds", "Longest time in seconds that the event loop was late within the last 15 s"
        )
        self.draining = Gauge("draining", "1 while the node is leaving, else 0")
        # A series that first appears with its first 1 shows no increase: those that alerts watch begin at 0.
        for outcome in ("healed", "said"):
            self.gaps.set(outcome, amount=0)
        for outcome in ("heard", "missed", "unsent"):
            self.feed_probes.set(outcome, amount=0)
        for dialect in ALL:
            self.slow_consumers.set(dialect.name, amount=0)
            self.opened.set(dialect.name, amount=0)

    def collect(self) -> Iterable[Metric]:
        return [metric.collect() for metric in vars(self).values()]
