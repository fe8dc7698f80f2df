"""The baseline: how cheap can a delivery be in this language when nothing is asked of the server but to deliver?

    python -m tests.bench.baseline PORT REDIS_PORT

One epoll loop, no timers, no authentication, no limits. `GET /NAME` subscribes to the Redis channel NAME; the client
hears `{"type":"pong"}` once Redis has confirmed that, and then every message of the channel as one text frame, made
once per message and sent with one send() per client. That is what it is there to show: what a server pays that writes
each message by itself. It is no server, and nothing but the benchmark speaks to it: what clients say is not read.
"""

import base64
import hashlib
import select
import socket
import sys

import hiredis

from .machine import raise_open_files

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3


def frame(payload: bytes) -> bytes:
    """A whole unmasked text frame (payloads here stay under 64 KB)."""
    size = len(payload)
    header = bytes((0x81, size)) if size < 126 else b"\x81\x7e" + size.to_bytes(2, "big")
    return header + payload


PONG = frame(b'{"type":"pong"}')


class Client:
    """One socket, and what it could not take yet."""

    __slots__ = ("channel", "pending", "send", "socket")

    def __init__(self, accepted: socket.socket) -> None:
        self.socket = accepted
        self.send = accepted.send  # bound once: it is called for every delivery
        self.pending = bytearray()
        self.channel: bytes | None = None


class Baseline:
    def __init__(self, port: int, redis_port: int) -> None:
        self.epoll = select.epoll()
        self.listener = socket.create_server(("127.0.0.1", port), backlog=4096)
        self.listener.setblocking(False)
        self.redis = socket.create_connection(("127.0.0.1", redis_port))
        self.reader = hiredis.Reader()
        self.clients: dict[int, Client] = {}
        self.channels: dict[bytes, dict[int, Client]] = {}
        self.confirmed: set[bytes] = set()
        for watched in (self.listener, self.redis):
            self.epoll.register(watched, select.EPOLLIN)

    def run(self) -> None:
        listener, redis = self.listener.fileno(), self.redis.fileno()
        while True:
            for descriptor, happened in self.epoll.poll():
                if descriptor == redis:
                    self.read_redis()
                elif descriptor == listener:
                    self.accept()
                else:
                    client = self.clients[descriptor]
                    if happened & select.EPOLLOUT:
                        self.flush(client)
                    if happened & ~select.EPOLLOUT:
                        self.read_client(client)

    def read_redis(self) -> None:
        data = self.redis.recv(1 << 20)
        if not data:
            sys.exit("baseline: Redis closed the connection")
        self.reader.feed(data)
        while (reply := self.reader.gets()) is not False:
            kind, channel, payload = reply
            if kind == b"message":
                self.deliver(channel, frame(payload))
            elif kind == b"subscribe":
                self.confirmed.add(channel)
                self.deliver(channel, PONG)

    def deliver(self, channel: bytes, data: bytes) -> None:
        size = len(data)
        for client in self.channels[channel].values():
            if client.pending:
                client.pending += data
                continue
            try:
                sent = client.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                continue  # it is gone: its own event says so
            if sent < size:
                self.keep(client, data[sent:])

    def keep(self, client: Client, rest: bytes) -> None:
        client.pending += rest
        self.epoll.modify(client.socket, select.EPOLLIN | select.EPOLLOUT)

    def flush(self, client: Client) -> None:
        try:
            del client.pending[: client.send(client.pending)]
        except OSError:
            return
        if not client.pending:
            self.epoll.modify(client.socket, select.EPOLLIN)

    def accept(self) -> None:
        while True:
            try:
                accepted, _ = self.listener.accept()
            except BlockingIOError:
                return
            accepted.setblocking(False)
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.clients[accepted.fileno()] = Client(accepted)
            self.epoll.register(accepted, select.EPOLLIN)

    def read_client(self, client: Client) -> None:
        try:
            data = client.socket.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.drop(client)
        elif client.channel is None:
            self.welcome(client, data)

    def welcome(self, client: Client, request: bytes) -> None:
        """Answer the handshake. The load generator sends it in one piece, so it is read in one piece."""
        channel = request.split(b" ", 2)[1].lstrip(b"/")
        key = request.partition(b"Sec-WebSocket-Key: ")[2].partition(b"\r\n")[0]
        accept = base64.b64encode(hashlib.sha1(key + _GUID).digest())
        client.send(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )
        client.channel = channel
        if channel not in self.channels:
            self.channels[channel] = {}
            self.redis.sendall(b"*2\r\n$9\r\nSUBSCRIBE\r\n$%d\r\n%s\r\n" % (len(channel), channel))
        elif channel in self.confirmed:
            client.send(PONG)
        self.channels[channel][client.socket.fileno()] = client

    def drop(self, client: Client) -> None:
        descriptor = client.socket.fileno()
        del self.clients[descriptor]
        if client.channel is not None:
            del self.channels[client.channel][descriptor]
        client.socket.close()


if __name__ == "__main__":
    raise_open_files()
    Baseline(int(sys.argv[1]), int(sys.argv[2])).run()
