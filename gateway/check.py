"""`trunkline check`: what a node would find with these settings, said before one is started."""

import asyncio
import resource
from collections.abc import Iterator
from typing import NamedTuple

import jwt
import msgspec

from broker import Invalid
from broker import address as addresses
from broker.check import Finding, findings, gather
from broker.keyspace import Keyspace

from .app import FEW_FILES
from .auth import FETCH_SECONDS, Verifier
from .logs import mask
from .settings import Settings

# As many as HS256 can use (RFC 7518, section 3.2).
SECRET_BYTES = 32


class Facts(NamedTuple):
    """What a node has here besides Redis. `files` are those it may open; `key_set` is why there are no keys, if so."""

    files: int
    secrets: tuple[int, ...]  # how long each is
    has_keys: bool
    keys_problem: str | None = None
    key_set_problem: str | None = None


async def check(settings: Settings) -> list[Finding]:
    """Everything that is to be said, Redis first."""
    address = addresses.read(settings.redis_url)
    facts = await gather(address, Keyspace(settings.prefix, is_sharded=address.is_cluster))
    return [*findings(facts), *node_findings(await _gather(settings))]


def say(finding: Finding, *, as_json: bool) -> str:
    """One line."""
    if as_json:
        return mask(msgspec.json.encode(finding._asdict()).decode())
    change = f"; set {finding.change}" if finding.change is not None else ""
    return mask(f"{finding.level:7}  {finding.about:13}  {finding.text}{change}")


def node_findings(facts: Facts) -> list[Finding]:
    """What is to be said of a node. Pure."""
    return list(_node_findings(facts))


def _node_findings(facts: Facts) -> Iterator[Finding]:
    if facts.files < FEW_FILES:
        text = f"a node here may open {facts.files} files, and each client takes one"
        yield Finding("warning", "files", text, "ulimit -n 65536 (LimitNOFILE, or ulimits of the container)")
    else:
        yield Finding("ok", "files", f"a node here may open {facts.files} files: one for each client, and some more")
    if not (facts.secrets or facts.has_keys):
        yield Finding("warning", "tokens", "no token could be verified: a node does not start like this",
                      "TRUNKLINE_JWT_SECRET, or TRUNKLINE_JWT_PUBLIC_KEY or TRUNKLINE_JWT_JWKS_URL")  # fmt: skip
    for length in facts.secrets:
        if length < SECRET_BYTES:
            text = f"a JWT secret has {length} bytes: it can be guessed from any token"
            yield Finding(
                "warning", "tokens", text, f"TRUNKLINE_JWT_SECRET, {SECRET_BYTES} bytes: openssl rand -hex 32"
            )
    if facts.keys_problem is not None:
        yield Finding("error", "tokens", facts.keys_problem, "TRUNKLINE_JWT_PUBLIC_KEY, PEM files of public keys")
    if facts.key_set_problem is not None:
        text = f"no keys come from the key set: {facts.key_set_problem}"
        yield Finding("error", "tokens", text, "TRUNKLINE_JWT_JWKS_URL, one that this machine can reach")
    is_bad = facts.keys_problem or facts.key_set_problem or any(length < SECRET_BYTES for length in facts.secrets)
    if not is_bad and (facts.secrets or facts.has_keys):
        yield Finding("ok", "tokens", "tokens can be verified")


async def _gather(settings: Settings) -> Facts:
    keys_problem = key_set_problem = None
    try:
        Verifier(msgspec.structs.replace(settings, jwt_secret=()))  # of secrets it would log what is said here
    except Invalid as error:
        keys_problem = error.reason
    if settings.jwt_jwks_url:
        key_set_problem = await asyncio.to_thread(_key_set_problem, settings.jwt_jwks_url)
    return Facts(
        files=resource.getrlimit(resource.RLIMIT_NOFILE)[1],  # a node takes as many as it may
        secrets=tuple(len(secret.encode()) for secret in settings.jwt_secret),
        has_keys=bool(settings.jwt_public_key or settings.jwt_jwks_url),
        keys_problem=keys_problem,
        key_set_problem=key_set_problem,
    )


def _key_set_problem(url: str) -> str | None:
    try:
        keys = jwt.PyJWKClient(url, cache_jwk_set=False, timeout=FETCH_SECONDS).get_signing_keys()
    except Exception as error:  # whatever a server may answer
        return str(error) or type(error).__name__
    return "none of them is a public one" if all(key.algorithm_name[:2] == "HS" for key in keys) else None
