"""Who a token speaks for: keys and algorithms are the node's choice, claims are believed when they have their shape."""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, x25519
from hypothesis import given, settings
from hypothesis import strategies as st

from broker import Invalid
from gateway import auth
from gateway.auth import READ_ONLY, Claims, Denied, UnknownKey, Verifier, bearer, sign
from gateway.settings import Settings

from .support import SECRET, free_port, token

pytestmark = pytest.mark.anyio

OTHER_SECRET = "another-secret-of-at-least-32-bytes!"
JsonObject = dict[str, Any]


def verifier(**changes: Any) -> Verifier:
    return Verifier(Settings(**({"jwt_secret": (SECRET,)} | changes)))


def good(**changes: Any) -> JsonObject:
    """The claims of a good token, changed; None takes a claim away."""
    now = int(time.time())
    claims = {"sub": "user-1", "workspaces": ["ws-456"], "iat": now, "exp": now + 3600} | changes
    return {name: value for name, value in claims.items() if value is not None}


def cause(verifier: Verifier, token: str) -> str:
    """Why the token is denied."""
    with pytest.raises(Denied) as denied:
        verifier.verify(token, time.time())
    assert token == "" or token not in str(denied.value)
    return denied.value.cause


def accepts(verifier: Verifier, token: str) -> Claims:
    return verifier.verify(token, time.time())


def test_a_subject_that_is_no_unicode_has_a_digest_as_others_have() -> None:
    """JSON can say half a character. Who is named so is nobody else, and does no harm."""
    names = [accepts(verifier(), token(sub=name)).user for name in ("\ud800", "\ud801", "?")]
    assert len({auth.digest(name) for name in names}) == 3


# -- HS256


def test_a_token_tells_who_it_speaks_for() -> None:
    expires = int(time.time()) + 60
    claims = good(
        sub="user-7", workspaces=["a", "b"], scope="events:read agents:write", agent_id="agent-1", exp=expires
    )
    assert accepts(verifier(), jwt.encode(claims, SECRET, "HS256")) == Claims(
        subject="user-7",
        user="user-7",
        workspaces=frozenset({"a", "b"}),
        scope=frozenset({"events:read", "agents:write"}),
        agent_id="agent-1",
        expires_at=expires,
    )


def test_without_a_scope_a_token_may_only_read() -> None:
    assert accepts(verifier(), token()).scope == READ_ONLY == {"events:read", "agents:read"}
    assert accepts(verifier(), token(scope="")).scope == frozenset()
    assert accepts(verifier(), token()).agent_id is None


def test_one_workspace_may_stand_without_a_list() -> None:
    assert accepts(verifier(), token(workspaces="ws-1")).workspaces == {"ws-1"}


def test_while_one_secret_replaces_another_tokens_of_both_are_accepted() -> None:
    rotating = verifier(jwt_secret=(OTHER_SECRET, SECRET))
    assert accepts(rotating, token(secret=SECRET)).subject == "user-1"
    assert accepts(rotating, token(secret=OTHER_SECRET)).subject == "user-1"
    assert cause(rotating, token(secret=SECRET + "!")) == "signature"
    rotated = verifier(jwt_secret=(OTHER_SECRET,))
    assert cause(rotated, token(secret=SECRET)) == "signature"


def test_an_expired_token_is_expired_under_whichever_secret_signed_it() -> None:
    rotating = verifier(jwt_secret=(OTHER_SECRET, SECRET))
    for secret in (SECRET, OTHER_SECRET):
        assert cause(rotating, token(secret=secret, ttl=-10)) == "expired"


def test_what_sign_makes_is_accepted_by_nodes_with_its_first_secret() -> None:
    made = sign(Settings(jwt_secret=(OTHER_SECRET, SECRET)), good())
    assert accepts(verifier(jwt_secret=(OTHER_SECRET,)), made).subject == "user-1"
    assert cause(verifier(jwt_secret=(SECRET,)), made) == "signature"


def test_nobody_signs_without_a_secret() -> None:
    with pytest.raises(Invalid) as invalid:
        sign(Settings(), good())
    assert invalid.value.path == "jwt_secret"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("a.b.c", "a.b.c"),
        ("Bearer a.b.c", "a.b.c"),
        ("bearer a.b.c", "a.b.c"),
        ("BEARER   a.b.c ", "a.b.c"),
        ("  a.b.c ", "a.b.c"),
        ("Basic a.b.c", "Basic a.b.c"),
        ("", ""),
    ],
)
def test_the_word_bearer_may_stand_before_a_token(given: str, meant: str) -> None:
    assert bearer(given) == meant


# -- public keys


def pem(key: Any) -> bytes:
    return bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


RSA = rsa.generate_private_key(65537, 2048)
KEYS = {
    "RS256": RSA,
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "ES384": ec.generate_private_key(ec.SECP384R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}


@pytest.fixture
def pem_file(tmp_path: Path) -> Callable[[str], str]:
    """The path of a file with the public key of an algorithm."""

    def write(algorithm: str) -> str:
        path = tmp_path / f"{algorithm}.pem"
        path.write_bytes(pem(KEYS[algorithm]))
        return str(path)

    return write


PemFile = Callable[[str], str]


@pytest.mark.parametrize("algorithm", KEYS)
def test_a_public_key_from_a_file_verifies_its_own_algorithm(algorithm: str, pem_file: PemFile) -> None:
    public = verifier(jwt_secret=(), jwt_public_key=(pem_file(algorithm),))
    assert accepts(public, jwt.encode(good(), KEYS[algorithm], algorithm)).workspaces == {"ws-456"}
    assert cause(public, jwt.encode(good(exp=1), KEYS[algorithm], algorithm)) == "expired"
    signed = jwt.encode(good(), KEYS[algorithm], algorithm)
    assert cause(public, signed[:-8] + ("AAAAAAAA" if signed[-8:] != "AAAAAAAA" else "BBBBBBBB")) == "signature"
    assert cause(public, token()) == "key"


def test_keys_of_every_kind_and_secrets_may_be_accepted_side_by_side(pem_file: PemFile) -> None:
    every = verifier(jwt_public_key=tuple(pem_file(algorithm) for algorithm in KEYS))
    for algorithm, key in KEYS.items():
        assert accepts(every, jwt.encode(good(), key, algorithm)).subject == "user-1"
    assert accepts(every, token()).subject == "user-1"
    another = rsa.generate_private_key(65537, 2048)
    assert cause(every, jwt.encode(good(), another, "RS256")) == "signature"


def test_two_public_keys_of_one_kind_may_replace_each_other(tmp_path: Path) -> None:
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    paths = [tmp_path / f"{number}.pem" for number in range(2)]
    for path, key in zip(paths, keys, strict=True):
        path.write_bytes(pem(key))
    both = verifier(jwt_secret=(), jwt_public_key=tuple(map(str, paths)))
    for key in keys:
        assert accepts(both, jwt.encode(good(), key, "ES256")).subject == "user-1"


BAD_FILES = {
    "no PEM": b"this is no key",
    "an empty file": b"",
    "a private key": RSA.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ),
    "a key that signs nothing": pem(x25519.X25519PrivateKey.generate()),
    "a curve that JWT does not know": pem(ec.generate_private_key(ec.SECP256K1())),
    "bytes": bytes(range(256)),
}


@pytest.mark.parametrize("content", BAD_FILES.values(), ids=BAD_FILES)
def test_a_file_without_a_usable_public_key_is_refused_at_the_start(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(content)
    with pytest.raises(Invalid) as invalid:
        verifier(jwt_public_key=(str(path),))
    assert invalid.value.path == "jwt_public_key"
    assert str(path) in str(invalid.value)


# -- algorithm confusion


def encoded(part: Any) -> str:
    raw = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def forged(header: Any, claims: Any, key: bytes | None = None, digest: Any = hashlib.sha256) -> str:
    """A token of any header and claims, signed with HMAC under `key`; without one the signature is empty."""
    signed = f"{encoded(header)}.{encoded(claims)}"
    signature = hmac.new(key, signed.encode(), digest).digest() if key is not None else b""
    return f"{signed}.{encoded(signature)}"


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE", "", None, "HS256", "RS256", ["none"], {}, 0])
def test_an_unsigned_token_is_never_accepted(algorithm: Any, pem_file: PemFile) -> None:
    everything = verifier(jwt_public_key=(pem_file("RS256"), pem_file("EdDSA")))
    for header in ({"alg": algorithm}, {"alg": algorithm, "typ": "JWT", "kid": "1"}):
        unsigned = forged(header, good())
        assert cause(everything, unsigned) in ("key", "signature", "malformed", "claims")
        assert cause(everything, unsigned.rpartition(".")[0]) == "malformed"


@pytest.mark.parametrize("algorithm", KEYS)
def test_a_public_key_is_no_secret_to_sign_with(algorithm: str, pem_file: PemFile) -> None:
    """The classic: everybody has the public key, and signs with it as if it were an HMAC secret."""
    text = pem(KEYS[algorithm])
    der = serialization.load_pem_public_key(text).public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    for public in (
        verifier(jwt_secret=(), jwt_public_key=(pem_file(algorithm),)),
        verifier(jwt_public_key=(pem_file(algorithm),)),
    ):
        for key in (text, text.strip(), text.replace(b"\n", b""), der, b""):
            for named in ("HS256", "HS384", "HS512", algorithm):
                for digest in (hashlib.sha256, hashlib.sha384, hashlib.sha512):
                    assert cause(public, forged({"alg": named, "typ": "JWT"}, good(), key, digest)) in (
                        "key",
                        "signature",
                    )


@pytest.mark.parametrize("named", ["HS384", "HS512", "RS256", "PS256", "ES256", "EdDSA", "hs256", "HS256 ", "HMAC"])
def test_a_secret_verifies_hs256_alone(named: str) -> None:
    for digest in (hashlib.sha256, hashlib.sha384, hashlib.sha512):
        assert cause(verifier(), forged({"alg": named}, good(), SECRET.encode(), digest)) == "key"


@pytest.mark.parametrize("algorithm", ["RS384", "RS512", "PS256", "PS384", "PS512"])
def test_an_rsa_key_verifies_rs256_alone(algorithm: str, pem_file: PemFile) -> None:
    public = verifier(jwt_secret=(), jwt_public_key=(pem_file("RS256"),))
    assert cause(public, jwt.encode(good(), RSA, algorithm)) == "key"


def test_a_key_that_a_token_brings_along_is_not_believed(pem_file: PemFile) -> None:
    mine = rsa.generate_private_key(65537, 2048)
    brought = {
        "jwk": json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(mine.public_key())),
        "jku": "http://127.0.0.1:1/keys",
        "x5u": "http://127.0.0.1:1/certificate",
        "kid": "/dev/null",
    }
    public = verifier(jwt_public_key=(pem_file("RS256"),))
    assert cause(public, jwt.encode(good(), mine, "RS256", headers=brought)) == "signature"
    assert cause(public, forged({"alg": "HS256", **brought}, good(), b"")) == "signature"


def test_a_signature_is_for_its_claims_and_its_header() -> None:
    header, claims, signature = token().split(".")
    other = token("ws-other").split(".")[1]
    assert cause(verifier(), f"{header}.{other}.{signature}") == "signature"
    assert cause(verifier(), f"{encoded({'alg': 'HS256', 'x': 1})}.{claims}.{signature}") == "signature"
    assert cause(verifier(), f"{header}.{claims}.") == "signature"


# -- claims


@pytest.mark.parametrize(
    "exp",
    [None, "soon", "", [], {}, [1e10], True, False, 0, -1, 1.5, math.nan, math.inf, -math.inf, 10**400, -(10**400)],
)
def test_every_token_must_expire_at_a_time_that_is_one(exp: Any) -> None:
    assert cause(verifier(), forged({"alg": "HS256"}, good(exp=exp), SECRET.encode())) in ("claims", "expired")


def test_a_token_is_good_until_it_expires() -> None:
    claims = accepts(verifier(), token(ttl=100.5))
    assert 99 < claims.expires_at - time.time() <= 100.5
    assert cause(verifier(), token(ttl=-1)) == "expired"
    with pytest.raises(Denied):
        verifier().verify(token(ttl=60), time.time() + 61)


def test_a_token_is_not_good_before_its_nbf() -> None:
    assert accepts(verifier(), token(nbf=int(time.time()) - 1)).subject == "user-1"
    for nbf in (int(time.time()) + 60, "later", [1], {}, math.inf, math.nan):
        assert cause(verifier(), forged({"alg": "HS256"}, good(nbf=nbf), SECRET.encode())) == "claims"


def test_a_configured_issuer_must_be_the_tokens() -> None:
    picky = verifier(jwt_issuer="https://login.example")
    assert accepts(picky, token(iss="https://login.example")).subject == "user-1"
    for wrong in ({}, {"iss": "https://login.example/"}, {"iss": ""}, {"iss": 5}, {"iss": ["https://login.example"]}):
        assert cause(picky, forged({"alg": "HS256"}, good(**wrong), SECRET.encode())) == "claims"
    assert accepts(verifier(), token(iss="anybody")).subject == "user-1"


def test_a_configured_audience_must_be_among_the_tokens() -> None:
    picky = verifier(jwt_audience="trunkline")
    assert accepts(picky, token(aud="trunkline")).subject == "user-1"
    assert accepts(picky, token(aud=["other", "trunkline"])).subject == "user-1"
    for wrong in ({}, {"aud": "trunk"}, {"aud": ["other"]}, {"aud": []}, {"aud": 5}, {"aud": {"trunkline": 1}}):
        assert cause(picky, forged({"alg": "HS256"}, good(**wrong), SECRET.encode())) == "claims"
    assert accepts(verifier(), token(aud="anybody")).subject == "user-1"


WRONG_CLAIMS: dict[str, JsonObject] = {
    "no workspaces": {"workspaces": None},
    "an empty list of workspaces": {"workspaces": []},
    "a workspace without a name": {"workspaces": ["ws-1", ""]},
    "an empty workspace": {"workspaces": ""},
    "workspaces that are numbers": {"workspaces": [1]},
    "workspaces that are null": {"workspaces": [None]},
    "workspaces in an object": {"workspaces": {"ws-1": True}},
    "workspaces in lists": {"workspaces": [["ws-1"]]},
    "workspaces as a number": {"workspaces": 456},
    "workspaces as a truth": {"workspaces": True},
    "scopes in a list": {"scope": ["events:read"]},
    "a scope that is a number": {"scope": 5},
    "a scope that is an object": {"scope": {"events:read": True}},
    "an agent that is a number": {"agent_id": 5},
    "an agent that is a list": {"agent_id": ["agent-1"]},
    "a subject that is a number": {"sub": 5},
    "a subject that is an object": {"sub": {}},
}


@pytest.mark.parametrize("claims", WRONG_CLAIMS.values(), ids=WRONG_CLAIMS)
def test_a_claim_of_another_shape_denies_the_token(claims: JsonObject) -> None:
    assert cause(verifier(), forged({"alg": "HS256"}, good(**claims), SECRET.encode())) in (
        "workspaces",
        "scope",
        "agent_id",
        "claims",
    )


@pytest.mark.parametrize(
    "payload", [b"", b"[]", b"null", b"5", b'"exp"', b"{", b"\xff", b'{"exp":1e999,"workspaces":["a"]}']
)
def test_claims_that_are_no_object_deny_the_token(payload: bytes) -> None:
    assert cause(verifier(), forged({"alg": "HS256"}, payload, SECRET.encode())) == "claims"


def test_claims_may_have_other_names() -> None:
    renamed = verifier(
        claim_workspaces="https://example.com/ws", claim_scope="permissions", claim_agent_id="https://example.com/agent"
    )
    claims = {"https://example.com/ws": ["ws-1"], "permissions": "events:read", "https://example.com/agent": "agent-1"}
    accepted = accepts(renamed, token(**(claims | {"workspaces": ["ws-2"], "scope": "agents:write", "agent_id": "no"})))
    assert accepted.workspaces == {"ws-1"}
    assert accepted.scope == {"events:read"}
    assert accepted.agent_id == "agent-1"
    assert cause(renamed, token("ws-1")) == "workspaces"


# -- garbage

DEEP = "[" * 6000


GARBAGE = {
    "nothing": "",
    "a word": "rubbish",
    "dots": "..",
    "three letters": "a.b.c",
    "two parts": ".".join(token().split(".")[:2]),
    "four parts": token() + ".x",
    "five parts, as an encrypted one has": "a.b.c.d.e",
    "very long": "a" * 1_000_000,
    "a long claim": token(more="x" * 20_000),
    "letters beyond ASCII": "eyJ.ü.世界",
    "a null byte": token() + "\x00",
    "a surrogate": "\ud800",
    "a line break": token().replace(".", ".\n", 1),
    "a header that is a list": forged([], good(), SECRET.encode()),
    "a header that is a text": forged("HS256", good(), SECRET.encode()),
    "a header that is a number": forged(5, good(), SECRET.encode()),
    "an empty header": forged({}, good(), SECRET.encode()),
    "a header that is no JSON": forged(b"{", good(), SECRET.encode()),
    "a header that is no text": forged(b"\xff\xfe", good(), SECRET.encode()),
    "a header that is nested deeply": forged(DEEP.encode(), good(), SECRET.encode()),
    "a header with a deeply nested member": forged(f'{{"alg":"HS256","x":{DEEP}'.encode(), good(), SECRET.encode()),
    "a header with a number that is too large": forged(
        b'{"alg":"HS256","x":' + b"9" * 5000 + b"}", good(), SECRET.encode()
    ),
    "a kid that is a number": forged({"alg": "HS256", "kid": 5}, good(), SECRET.encode()),
    "a kid that is an object": forged({"alg": "HS256", "kid": {}}, good(), SECRET.encode()),
    "an unknown critical extension": forged({"alg": "HS256", "crit": ["x"], "x": 1}, good(), SECRET.encode()),
    "a payload that is not in the token": forged(
        {"alg": "HS256", "b64": False, "crit": ["b64"]}, good(), SECRET.encode()
    ),
    "claims that are nested deeply": forged({"alg": "HS256"}, DEEP.encode(), SECRET.encode()),
    "a claim that is nested deeply": forged({"alg": "HS256"}, f'{{"x":{DEEP}'.encode(), SECRET.encode()),
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_garbage_is_denied(garbage: str, pem_file: PemFile) -> None:
    assert cause(verifier(), garbage)
    with pytest.raises((Denied, UnknownKey)):
        accepts(verifier(jwt_secret=(), jwt_jwks_url="http://127.0.0.1:1/"), garbage)
    assert cause(verifier(jwt_secret=(), jwt_public_key=(pem_file("ES256"),)), garbage)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
header_names = st.sampled_from(["alg", "typ", "kid", "cty", "crit", "b64", "zip", "enc", "jwk", "x5c"])
headers = st.dictionaries(header_names, json_values, max_size=4).flatmap(
    lambda header: st.sampled_from([header, header | {"alg": "HS256"}, header | {"alg": "RS256"}])
)
claim_names = st.sampled_from(["exp", "nbf", "iat", "iss", "aud", "sub", "jti", "workspaces", "scope", "agent_id"])
wrong_claims = st.dictionaries(claim_names, json_values, max_size=4).flatmap(
    lambda claims: st.sampled_from([claims, good() | claims])
)
parts = st.text("abcABC019-_=", max_size=12) | st.binary(max_size=30).map(encoded) | json_values.map(encoded)
tokens = (
    st.text()
    | st.lists(parts, max_size=6).map(".".join)
    | st.builds(forged, headers, wrong_claims, st.just(SECRET.encode()))
    | st.builds(forged, headers | st.binary(), wrong_claims | st.binary())
)

VERIFIERS = [verifier(), verifier(jwt_jwks_url="http://127.0.0.1:1/", jwt_issuer="me", jwt_audience="you")]


@given(tokens)
@settings(deadline=None, max_examples=500)
def test_no_token_does_anything_but_be_accepted_or_denied(garbage: str) -> None:
    for some in VERIFIERS:
        with contextlib.suppress(Denied, UnknownKey):
            claims = some.verify(garbage, time.time())
            assert claims.workspaces
            assert all(isinstance(name, str) and name for name in claims.workspaces)
            assert claims.expires_at > time.time() - 60


# -- key sets


class KeyServer:
    """Serves a JSON Web Key Set over HTTP, and counts how often it was asked."""

    def __init__(self) -> None:
        self.keys: dict[str, Any] = {}
        self.body: bytes | None = None  # instead of the keys
        self.status = 200
        self.raw: bytes | None = None  # instead of HTTP
        self.hold = threading.Event()
        self.hold.set()
        self.requests = 0
        served = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                served.requests += 1
                served.hold.wait(10)
                if served.raw is not None:
                    self.wfile.write(served.raw)
                    return
                body = served.body if served.body is not None else json.dumps(served.document).encode()
                self.send_response(served.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(body)

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/keys"

    @property
    def document(self) -> JsonObject:
        return {"keys": [jwk(key, kid) for kid, key in self.keys.items()]}

    def close(self) -> None:
        self.hold.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def jwk(key: Any, kid: str) -> JsonObject:
    if isinstance(key, rsa.RSAPrivateKey):
        to_jwk, algorithm = jwt.algorithms.RSAAlgorithm.to_jwk, "RS256"
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        to_jwk, algorithm = jwt.algorithms.ECAlgorithm.to_jwk, "ES256"
    else:
        to_jwk, algorithm = jwt.algorithms.OKPAlgorithm.to_jwk, "EdDSA"
    return json.loads(to_jwk(key.public_key())) | {"kid": kid, "use": "sig", "alg": algorithm}


@pytest.fixture
def key_server() -> Iterator[KeyServer]:
    server = KeyServer()
    server.thread.start()
    try:
        yield server
    finally:
        server.close()


def with_jwks(url: str, **changes: Any) -> Verifier:
    return verifier(**({"jwt_secret": (), "jwt_jwks_url": url} | changes))


def signed(kid: str | None, key: Any = RSA, algorithm: str = "RS256", **changes: Any) -> str:
    return jwt.encode(good(**changes), key, algorithm, headers={"kid": kid} if kid is not None else None)


async def judge(verifier: Verifier, token: str) -> str:
    """As a connection asks: once more after the keys were fetched. "accepted", or why not."""
    try:
        try:
            verifier.verify(token, time.time())
        except UnknownKey:
            await verifier.refresh()
            verifier.verify(token, time.time())
    except Denied as denied:
        return denied.cause
    except UnknownKey:
        return "key"
    return "accepted"


async def test_the_keys_are_fetched_when_a_token_needs_one_and_then_kept(key_server: KeyServer) -> None:
    key_server.keys = {"one": RSA, "two": KEYS["ES256"], "three": KEYS["EdDSA"]}
    verifier = with_jwks(key_server.url)
    assert key_server.requests == 0
    for _ in range(3):
        assert await judge(verifier, signed("one")) == "accepted"
        assert await judge(verifier, signed("two", KEYS["ES256"], "ES256")) == "accepted"
        assert await judge(verifier, signed("three", KEYS["EdDSA"], "EdDSA")) == "accepted"
    assert key_server.requests == 1


async def test_unknown_kids_make_it_fetch_once_a_minute_at_most(
    key_server: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    key_server.keys = {"one": RSA}
    verifier = with_jwks(key_server.url)
    for number in range(20):
        assert await judge(verifier, signed(f"unknown-{number}")) == "key"
    assert await judge(verifier, signed("one")) == "accepted"
    assert key_server.requests == 1
    clock = time.monotonic()
    monkeypatch.setattr(auth.time, "monotonic", lambda: clock + auth.REFRESH_SECONDS - 1)
    assert await judge(verifier, signed("unknown")) == "key"
    assert key_server.requests == 1
    monkeypatch.setattr(auth.time, "monotonic", lambda: clock + auth.REFRESH_SECONDS + 1)
    for _ in range(5):
        assert await judge(verifier, signed("unknown")) == "key"
    monkeypatch.undo()
    assert key_server.requests == 2
    assert auth.REFRESH_SECONDS == 60


async def test_keys_rotate(key_server: KeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new key is taken when a token names it, and the old one goes with it."""
    key_server.keys = {"old": RSA}
    verifier = with_jwks(key_server.url)
    known = signed("old")
    assert await judge(verifier, known) == "accepted"
    monkeypatch.setattr(auth, "REFRESH_SECONDS", 0.0)
    new = ec.generate_private_key(ec.SECP256R1())
    key_server.keys = {"new": new}
    assert await judge(verifier, signed("old")) == "accepted", "a known key needs no fetch"
    assert await judge(verifier, signed("new", new, "ES256")) == "accepted"
    assert await judge(verifier, signed("old")) == "key"
    assert await judge(verifier, known) == "key", "what it remembers of tokens goes with the keys"


async def test_a_token_that_was_good_before_is_good_until_it_expires() -> None:
    both, token = verifier(), sign(Settings(jwt_secret=(SECRET,)), good())
    first = both.verify(token, time.time())
    assert both.verify(token, first.expires_at - 1) == first
    with pytest.raises(Denied) as denied:
        both.verify(token, first.expires_at)
    assert denied.value.cause == "expired"
    with pytest.raises(Denied):
        both.verify(token[:-4] + "AAAA", time.time())


async def test_clients_that_come_at_the_same_time_share_one_fetch(key_server: KeyServer) -> None:
    key_server.keys = {"one": RSA}
    key_server.hold.clear()
    verifier = with_jwks(key_server.url)
    asking = [asyncio.create_task(judge(verifier, signed("one"))) for _ in range(50)]
    async with asyncio.timeout(10):
        while key_server.requests == 0:
            await asyncio.sleep(0.01)
        key_server.hold.set()
        assert set(await asyncio.gather(*asking)) == {"accepted"}
    assert key_server.requests == 1


async def test_a_client_that_leaves_while_it_waits_takes_nobodys_fetch_away(key_server: KeyServer) -> None:
    key_server.keys = {"one": RSA}
    key_server.hold.clear()
    verifier = with_jwks(key_server.url)
    leaving, staying = (asyncio.create_task(judge(verifier, signed("one"))) for _ in range(2))
    async with asyncio.timeout(10):
        while key_server.requests == 0:
            await asyncio.sleep(0.01)
        leaving.cancel()
        key_server.hold.set()
        assert await staying == "accepted"
        with pytest.raises(asyncio.CancelledError):
            await leaving


async def test_a_token_without_a_kid_is_of_the_only_key(key_server: KeyServer) -> None:
    key_server.keys = {"one": RSA}
    assert await judge(with_jwks(key_server.url), signed(None)) == "accepted"
    key_server.keys["two"] = KEYS["ES256"]
    assert await judge(with_jwks(key_server.url), signed(None)) == "key"


async def test_a_key_of_the_set_is_for_its_own_algorithm_and_kid(key_server: KeyServer) -> None:
    key_server.keys = {"one": RSA, "two": KEYS["ES256"]}
    verifier = with_jwks(key_server.url)
    assert await judge(verifier, signed("two", RSA, "RS256")) == "key"
    assert await judge(verifier, signed("one", RSA, "RS512")) == "key"
    assert await judge(verifier, signed("one", rsa.generate_private_key(65537, 2048))) == "signature"
    assert await judge(verifier, forged({"alg": "HS256", "kid": "one"}, good(), pem(RSA))) == "key"
    assert await judge(verifier, forged({"alg": "none", "kid": "one"}, good())) == "key"
    assert await judge(verifier, signed("one", exp=5)) == "expired"


async def test_a_secret_in_a_public_key_set_is_never_used(key_server: KeyServer) -> None:
    shared = base64.urlsafe_b64encode(SECRET.encode()).decode().rstrip("=")
    key_server.body = json.dumps(
        {"keys": [{"kty": "oct", "kid": "s", "k": shared, "alg": "HS256"}, jwk(RSA, "one")]}
    ).encode()
    verifier = with_jwks(key_server.url)
    assert await judge(verifier, forged({"alg": "HS256", "kid": "s"}, good(), SECRET.encode())) == "key"
    assert await judge(verifier, signed("one")) == "accepted"


async def test_a_key_that_cannot_be_used_spoils_none_beside_it(key_server: KeyServer) -> None:
    strange = [
        {"kty": "RSA", "kid": "broken", "n": "!", "e": "AQAB"},
        {"kty": "quantum", "kid": "unknown kind"},
        {"kty": "EC", "crv": "P-0", "kid": "unknown curve", "x": "", "y": ""},
        {"kid": "no kind"},
        {},
    ]
    for one in strange:
        key_server.body = json.dumps({"keys": [one, jwk(RSA, "one")]}).encode()
        assert await judge(with_jwks(key_server.url), signed("one")) == "accepted", one


async def test_without_an_answer_tokens_are_denied_until_there_is_one(
    key_server: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "REFRESH_SECONDS", 0.0)
    verifier = with_jwks(f"http://127.0.0.1:{free_port()}/keys")
    assert await judge(verifier, signed("one")) == "key"
    key_server.keys = {"one": RSA}
    key_server.status = 503
    verifier = with_jwks(key_server.url)
    assert await judge(verifier, signed("one")) == "key"
    key_server.status = 200
    assert await judge(verifier, signed("one")) == "accepted"


async def test_a_key_server_that_is_silent_is_not_waited_for(
    key_server: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "FETCH_SECONDS", 0.2)
    key_server.hold.clear()
    async with asyncio.timeout(10):
        assert await judge(with_jwks(key_server.url), signed("one")) == "key"


NONSENSE: dict[str, bytes] = {
    "nothing": b"",
    "HTML": b"<html>503</html>",
    "no text": b"\xff\xfe\x00",
    "null": b"null",
    "a list": b"[]",
    "a list of lists": b"[[]]",
    "a number": b"5",
    "a text": b'"keys"',
    "an object without keys": b"{}",
    "no keys": b'{"keys":[]}',
    "keys that are null": b'{"keys":null}',
    "keys in an object": b'{"keys":{"kid":"one"}}',
    "keys that are numbers": b'{"keys":[1,2]}',
    "keys that are texts": b'{"keys":["one"]}',
    "keys that are null, each": b'{"keys":[null]}',
    "keys of wrong types": b'{"keys":[{"kty":5,"kid":[],"n":{},"e":null}]}',
    "nested deeply": b"[" * 100_000,
    "very long": b'{"keys":[' + b" " * 3_000_000 + b"]}",
}


@pytest.mark.parametrize("body", NONSENSE.values(), ids=NONSENSE)
async def test_a_key_server_that_answers_nonsense_takes_no_key_away(
    key_server: KeyServer, monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    monkeypatch.setattr(auth, "REFRESH_SECONDS", 0.0)
    key_server.keys = {"one": RSA}
    verifier = with_jwks(key_server.url)
    assert await judge(verifier, signed("one")) == "accepted"
    key_server.body = body
    assert await judge(verifier, signed("two")) == "key"
    assert await judge(verifier, signed("one")) == "accepted"
    key_server.body = None
    key_server.keys = {"two": RSA}
    assert await judge(verifier, signed("two")) == "accepted"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
        b"HTTP/1.1 OK\r\n\r\n",
    ],
    ids=["nothing", "empty lines", "another protocol", "half of it", "no status"],
)
async def test_a_key_server_that_speaks_no_http_takes_no_key_away(
    key_server: KeyServer, monkeypatch: pytest.MonkeyPatch, raw: bytes
) -> None:
    monkeypatch.setattr(auth, "REFRESH_SECONDS", 0.0)
    key_server.keys = {"one": RSA}
    verifier = with_jwks(key_server.url)
    assert await judge(verifier, signed("one")) == "accepted"
    key_server.raw = raw
    assert await judge(verifier, signed("two")) == "key"
    assert await judge(verifier, signed("one")) == "accepted"


async def test_tokens_of_a_secret_are_judged_without_a_key_set(key_server: KeyServer) -> None:
    verifier = with_jwks(key_server.url, jwt_secret=(SECRET,))
    assert await judge(verifier, token()) == "accepted"
    assert await judge(verifier, token(secret=OTHER_SECRET)) == "signature"
    assert key_server.requests == 0
