"""Pairing keys: `MC-<NAME>-<ID><4>-<6>` (seed 001, "Agent erstellen"), shown once, kept as their hash. Pure."""

import re
import secrets
from hashlib import sha256

# How long a key waits to be used.
PAIRING_SECONDS = 24 * 3600

# Without those that people take for each other: 5 bits a character, 50 that nobody can guess in a day.
_ALPHABET = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"
_MAX_NAME_CHARACTERS = 8


def make_key(name: str, agent_id: str) -> str:
    """A new key for the agent: its name's first word and its id are there for people to see whose it is."""
    word = re.search("[A-Za-z0-9]+", name)
    shown = word[0].upper()[:_MAX_NAME_CHARACTERS] if word else "AGENT"
    return f"MC-{shown}-{agent_id.removeprefix('agent-').upper()}{_random(4)}-{_random(6)}"


def hash_of(key: str) -> str:
    """By which we know a key."""
    return sha256(key.encode(errors="surrogatepass")).hexdigest()


def _random(characters: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(characters))
