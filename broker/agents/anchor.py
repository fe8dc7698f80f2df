"""Anchors: where a list goes on, as a text that whoever reads it hands back. Pure."""

import base64
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

from ..errors import Invalid


class Anchor(NamedTuple):
    """An agent's place in the order of a list, newer is more: unique in its workspace, among several with its id.

    It stays where it is, whether or not the agent does.
    """

    place: Annotated[int, Meta(ge=0, le=2**53)]
    agent_id: str

    @property
    def text(self) -> str:
        return base64.urlsafe_b64encode(msgspec.json.encode(self)).decode()

    @classmethod
    def read(cls, text: str) -> "Anchor":
        """The anchor that says `text`. Raises `Invalid` with `$.before`."""
        try:
            return msgspec.json.decode(base64.b64decode(text, b"-_", validate=True), type=cls)
        except (msgspec.MsgspecError, ValueError):
            raise Invalid("$.before", "expected what a page said to be its next") from None
