"""Lua scripts in Redis: run by their hash, or whole where Redis does not know them (any more)."""

from collections.abc import Sequence
from hashlib import sha1
from importlib import resources
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

Argument = str | bytes | int | float


class Script:
    """One file of scripts/. What it wants as KEYS and ARGV and what it answers stands in its header."""

    def __init__(self, redis: Redis, name: str) -> None:
        self._redis = redis
        self._text = resources.files("broker").joinpath(f"scripts/{name}.lua").read_text()
        self._sha = sha1(self._text.encode(), usedforsecurity=False).hexdigest()

    async def run(self, keys: Sequence[str], arguments: Sequence[Argument]) -> Any:
        """One call, one round trip. Raises redis-py's errors: a call whose answer was lost may have run."""
        try:
            return await self._call("EVALSHA", self._sha, keys, arguments)
        except NoScriptError:
            # Sent whole it goes to the server that has the keys, and is known there from then on.
            return await self._call("EVAL", self._text, keys, arguments)

    async def run_many(self, calls: Sequence[tuple[Sequence[str], Sequence[Argument]]]) -> list[Any]:
        """Several calls in one round trip, each on its own; the answers in their order."""
        if len(calls) == 1:  # a pipeline costs redis-py twice what a call does
            return [await self.run(*calls[0])]
        answers = await self._call_many("EVALSHA", self._sha, calls)
        missed = [number for number, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if missed:
            again = await self._call_many("EVAL", self._text, [calls[number] for number in missed])
            for number, answer in zip(missed, again, strict=True):
                answers[number] = answer
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    def _call(self, command: str, script: str, keys: Sequence[str], arguments: Sequence[Argument]) -> Any:
        return self._redis.execute_command(  # type: ignore[no-untyped-call]
            command, script, len(keys), *keys, *arguments
        )

    async def _call_many(
        self, command: str, script: str, calls: Sequence[tuple[Sequence[str], Sequence[Argument]]]
    ) -> list[Any]:
        async with self._redis.pipeline(transaction=False) as pipe:
            for keys, arguments in calls:
                pipe.execute_command(command, script, len(keys), *keys, *arguments)
            return await pipe.execute(raise_on_error=False)
