"""Whether a Redis is what Trunkline needs: looked at through its own connections, and said in words.

facts = await gather(address.read(url), Keyspace("trunkline"))
for finding in findings(facts): …
"""

from .facts import Facts, Finding, Server
from .findings import findings
from .gather import gather

__all__ = ["Facts", "Finding", "Server", "findings", "gather"]
