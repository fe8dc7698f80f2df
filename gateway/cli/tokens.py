"""`trunkline token`."""

import argparse

from broker import Invalid
from broker.keyspace import check_id, check_workspace

from .. import auth
from ..settings import Settings
from .parsing import Commands


def add(commands: Commands) -> None:
    token = commands.add("token", _token, "make a token that nodes with the same secret accept", ("jwt_", "claim_"))
    token.add_argument("--sub", required=True, help="whom it speaks for")
    token.add_argument("--workspace", required=True, action="append", help="a workspace it names; may be repeated")
    token.add_argument("--scope", help='what it may do, as "events:read commands:send"; absent: read only')
    token.add_argument("--agent", help="the agent whose own token it is")
    token.add_argument("--fingerprint", help="only for the client that says this in its header X-Client-Fingerprint")
    token.add_argument("--ttl", type=int, default=3600, help="seconds until it expires [3600]")


def _token(settings: Settings, options: argparse.Namespace) -> int:
    for workspace in options.workspace:
        check_workspace(workspace, "--workspace")
    if options.agent is not None:
        check_id(options.agent, "--agent")
    if options.ttl <= 0:
        raise Invalid("--ttl", "expected more than 0 seconds")
    if options.scope is not None and not set(options.scope.split()) <= auth.SCOPES:
        raise Invalid("--scope", f"expected some of {', '.join(sorted(auth.SCOPES))}")
    claims = auth.claims_for(
        settings, options.sub, options.workspace, options.ttl, scope=options.scope, agent=options.agent
    )
    if options.fingerprint is not None:
        claims["fingerprint"] = auth.digest(options.fingerprint)
    print(auth.sign(settings, claims))
    return 0
