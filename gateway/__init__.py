"""The gateway node: WebSockets and HTTP on one side, `broker` on the other."""
