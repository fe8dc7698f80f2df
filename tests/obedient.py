"""An agent in a process of its own: `python -m tests.obedient <redis url> <prefix> <workspace> <agent>`.

It publishes what it was told as an `agent_status`, and answers `get_status`, as if it were another. Parameters make it
misbehave: `silent` is never settled, `fail` are the code and words to fail with.
"""

import asyncio
import os
import sys

from broker import Broker, Command, Event


async def main(url: str, prefix: str, workspace: str, agent: str) -> None:
    async with Broker.connect(url, prefix=prefix, workspace_id=workspace) as broker:
        async for command in broker.commands(agent):
            await obey(broker, command)


async def obey(broker: Broker, command: Command) -> None:
    """Do what the parameters say."""
    if "silent" in command.parameters:
        return
    if "fail" in command.parameters:
        await command.failed(*command.parameters["fail"])
    elif command.name == "get_status":
        await command.done({"agent_id": "another", "old_status": "idle", "new_status": "idle", "pid": os.getpid()})
    else:
        told = {"name": command.name, "parameters": command.parameters, "request_id": command.request_id}
        data = {"new_status": "active", "told": told | {"sender": command.sender, "pid": os.getpid()}}
        await broker.publish(
            Event(type="agent_status", workspace_id=command.workspace_id, agent_id=command.agent_id, data=data)
        )
        await command.done()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
