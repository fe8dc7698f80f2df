"""TLS and a user with no more rights than needed, in each topology."""

import ipaddress
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from broker import Broker, Unavailable, address
from broker.agents.model import Draft
from broker.check.permissions import rules
from broker.keyspace import Keyspace

from .support import until
from .test_feed import WORKSPACE, progress, running
from .topologies import SERVICE, Cluster, Sentinels, Server, redis_server_7

pytestmark = pytest.mark.anyio

USER, PASSWORD = "trunkline", "s:e@c/r,t"


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an authority's certificate, and a key and a certificate of 127.0.0.1."""
    directory = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a test")])
    builder = x509.CertificateBuilder(
        issuer_name=name,
        subject_name=name,
        public_key=key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=datetime.now(UTC) - timedelta(days=1),
        not_valid_after=datetime.now(UTC) + timedelta(days=1),
    )
    alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(alternative, critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    (directory / "ca.pem").write_bytes(pem)
    (directory / "server.pem").write_bytes(pem)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (directory / "server.key").write_bytes(secret)
    return directory


class One(Server):
    """One Redis, as the other topologies are made."""

    def __init__(self, tls: Path) -> None:
        super().__init__(redis_server_7(), tls=tls)

    @property
    def servers(self) -> Sequence[Server]:
        return [self]

    @property
    def hosts(self) -> str:
        return f"127.0.0.1:{self.public_port}"


TOPOLOGIES: dict[str, tuple[Callable[[Path], AbstractContextManager[One | Sentinels | Cluster]], str]] = {
    "rediss": (One, "/0"),
    "rediss+sentinel": (Sentinels, f"/{SERVICE}"),
    "rediss+cluster": (Cluster, ""),
}


@pytest.mark.parametrize("scheme", TOPOLOGIES)
async def test_tls_and_a_user_of_few_rights(
    tls: Path, prefix: str, scheme: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Of those that `trunkline check` asks for, and of no other."""
    make, path = TOPOLOGIES[scheme]
    with make(tls) as found:
        where = address.read(f"{scheme}://{found.hosts}{path}")
        rights = rules(where, Keyspace(prefix, is_sharded=where.is_cluster))
        for server in found.servers:
            server.ask("ACL SETUSER", USER, "reset", "resetchannels", "on", f">{PASSWORD}", *rights)
        login, query = f"{USER}:{quote(PASSWORD, safe='')}@", f"ssl_ca_certs={tls / 'ca.pem'}"
        if isinstance(found, Sentinels):
            for sentinel in found.sentinels:
                rights = ("-@all", "+hello", "+sentinel|get-master-addr-by-name", "+sentinel|master")
                sentinel.ask("ACL SETUSER", "asker", "on", ">who?", *rights)
                sentinel.ask("ACL SETUSER", "default", "off")
            query += "&sentinel_username=asker&sentinel_password=who%3F"
        url = f"{scheme}://{login}{found.hosts}{path}?{query}"
        async with (
            Broker.connect(url, prefix=prefix) as broker,
            running(broker, (WORKSPACE, None), ("ws-2", None)) as (_, taken),
        ):
            await broker.publish_many([progress(1), progress(1, workspace="ws-2")])
            await until(lambda: len(taken.events) == 2)
            created = await broker.agents.create(WORKSPACE, Draft(workspace_id=WORKSPACE, name="Alpha"))
            await broker.agents.present(created.id, workspace_id=WORKSPACE)
            await until(lambda: [event.type for event in taken.events][2:4] == ["agent_created", "agent.online"])
            ours = [one for server in found.servers for one in server.ask("CLIENT LIST") if "trunkline" in one["name"]]
            assert {one["user"] for one in ours} == {USER}
        # Without the authority, and without the password.
        with pytest.raises(Unavailable, match=r"CERTIFICATE_VERIFY_FAILED|certificate verify failed"):
            async with Broker.connect(url.partition("?")[0], prefix=prefix):
                raise AssertionError
        with pytest.raises(Unavailable, match=r"WRONGPASS|invalid username-password") as refused:
            async with Broker.connect(url.replace("%2C", "%2B"), prefix=prefix):
                raise AssertionError
        assert "s:e@c" not in str(refused.value)
        assert "s%3Ae" not in caplog.text + str(refused.value)
