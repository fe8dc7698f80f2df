"""Who a token speaks for. Algorithms are fixed by the keys that are configured, never by the token."""

import asyncio
import hashlib
import hmac
import logging
import time
import urllib.request
from pathlib import Path
from typing import Any

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from broker import Invalid
from broker.keyspace import check_workspace

from .settings import Settings

logger = logging.getLogger("trunkline.auth")

REFRESH_SECONDS = 60.0
FETCH_SECONDS = 5.0
MAX_TOKEN_CHARACTERS = 16 * 1024
MAX_REMEMBERED = 10_000
SCOPES = frozenset(
    {"events:read", "events:write", "agents:read", "agents:write", "commands:send", "runs:start"}
)  # fmt: skip
READ_ONLY = frozenset({"events:read", "agents:read"})

_CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}


class Claims(msgspec.Struct, frozen=True):
    """What a verified token says. `expires_at` is Unix time in seconds; no scope claim: read only.

    `user` is whose connections and messages are counted together: the subject, or one token where it names none.
    `fingerprint` is the SHA-256 (hex) of what a client must say of itself to use the token.
    """

    subject: str
    user: str
    workspaces: frozenset[str]
    scope: frozenset[str]
    agent_id: str | None
    expires_at: float
    fingerprint: str | None = None


class Denied(Exception):  # noqa: N818
    """A token that is not accepted; `cause` is a short word for the metric, and says nothing of the token."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause


class UnknownKey(Exception):  # noqa: N818
    """The token's `kid` is not among the fetched keys: `refresh` may help."""


class Verifier:
    """The keys of one node. `verify` waits for nothing; only `refresh` does."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._keys: list[tuple[str, Any]] = [("HS256", secret) for secret in settings.jwt_secret]
        self._keys += [_public_key(Path(path)) for path in settings.jwt_public_key]
        self._fetched: dict[str, tuple[str, Any]] = {}
        self._verified: dict[str, Claims] = {}  # by the token's digest, the oldest first
        self._refreshed_at = float("-inf")
        self._refreshing: asyncio.Task[None] | None = None
        self._decoder = jwt.PyJWT({"enforce_minimum_key_length": False})
        for secret in settings.jwt_secret:
            if len(secret) < 32:
                logger.warning("a JWT secret is shorter than 32 bytes: it can be guessed from any token")

    def verify(self, token: str, now: float) -> Claims:
        """The claims of a token without `Bearer`. Raises `Denied`, or `UnknownKey` when fetching keys may help."""
        if not token:
            raise Denied("missing")
        if len(token) > MAX_TOKEN_CHARACTERS or not token.isascii():
            raise Denied("malformed")
        name = digest(token)
        known = self._verified.get(name)
        if known is not None and known.expires_at > now:
            return known
        denied = Denied("key")
        for algorithm, key in [*self._keys, *self._named(token)]:
            try:
                claims = self._claims(token, self._decode(token, algorithm, key), now)
                self._remember(name, claims)
                return claims
            except jwt.InvalidSignatureError:
                denied = Denied("signature")
            except jwt.ExpiredSignatureError:
                raise Denied("expired") from None
            except jwt.InvalidAlgorithmError:
                pass  # signed in another way than with this key
            except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
                raise Denied("claims" if _header(token) else "malformed") from None
        if self._may_be_fetched(token):
            raise UnknownKey
        raise denied

    def _remember(self, name: str, claims: Claims) -> None:
        """A token stays good until it expires or the keys change: REST clients show theirs with every request."""
        self._verified.pop(name, None)
        self._verified[name] = claims
        if len(self._verified) > MAX_REMEMBERED:
            del self._verified[next(iter(self._verified))]

    def _named(self, token: str) -> list[tuple[str, Any]]:
        """The fetched key that the token names; the only one when it names none."""
        if not self._fetched:
            return []
        kid = _header(token).get("kid")
        if kid is None and len(self._fetched) == 1:
            return list(self._fetched.values())
        known = self._fetched.get(str(kid))
        return [] if known is None else [known]

    def _may_be_fetched(self, token: str) -> bool:
        """True when the token names a key that we do not know, and it is not too soon to ask for the set again."""
        if not self._settings.jwt_jwks_url:
            return False
        if self._refreshing is None and time.monotonic() - self._refreshed_at < REFRESH_SECONDS:
            return False
        header = _header(token)
        if header.get("kid") is None:
            # It names no key: a set that we have does not get better by being fetched again.
            return bool(header) and not self._fetched and header.get("alg") not in [kind for kind, _ in self._keys]
        return str(header["kid"]) not in self._fetched

    def _decode(self, token: str, algorithm: str, key: Any) -> dict[str, Any]:
        settings = self._settings
        return self._decoder.decode(
            token,
            key,
            algorithms=[algorithm],
            audience=settings.jwt_audience or None,
            issuer=settings.jwt_issuer or None,
            options={"require": ["exp"], "verify_aud": bool(settings.jwt_audience), "verify_iat": False},
        )

    def _claims(self, token: str, claims: dict[str, Any], now: float) -> Claims:
        settings = self._settings
        workspaces = claims.get(settings.claim_workspaces)
        if isinstance(workspaces, str):
            workspaces = [workspaces]
        if not isinstance(workspaces, list) or not workspaces:
            raise Denied("workspaces")
        try:
            names = frozenset(check_workspace(name, settings.claim_workspaces) for name in workspaces)
        except Invalid:
            raise Denied("workspaces") from None
        scope = claims.get(settings.claim_scope)
        if scope is not None and not isinstance(scope, str):
            raise Denied("scope")
        agent = claims.get(settings.claim_agent_id)
        if agent is not None and not isinstance(agent, str):
            raise Denied("agent_id")
        fingerprint = claims.get("fingerprint")
        if fingerprint is not None and not isinstance(fingerprint, str):
            raise Denied("fingerprint")
        expires_at = float(claims["exp"])
        if expires_at <= now:
            raise Denied("expired")
        subject = str(claims.get("sub", ""))
        return Claims(
            subject=subject,
            # What is signed: of the signature there is a second form that is as good.
            user=subject or f"token-{digest(token.rpartition('.')[0])[:32]}",
            workspaces=names,
            scope=READ_ONLY if scope is None else frozenset(scope.split()),
            agent_id=agent,
            expires_at=expires_at,
            fingerprint=fingerprint,
        )

    async def refresh(self) -> None:
        """Fetch the key set; all who wait share one fetch. A failed one leaves the keys as they were."""
        if self._refreshing is None:
            self._refreshing = asyncio.create_task(self._fetch())
        await asyncio.shield(self._refreshing)

    async def _fetch(self) -> None:
        try:
            document = await asyncio.to_thread(_get, self._settings.jwt_jwks_url)
            keys = jwt.PyJWKSet.from_json(document.decode()).keys
            self._fetched = {
                str(key.key_id): (key.algorithm_name, key.key) for key in keys if key.algorithm_name[:2] != "HS"
            }
            self._verified.clear()
        except Exception as error:
            logger.error("cannot fetch the key set: %s", error or type(error).__name__)
        finally:
            self._refreshed_at = time.monotonic()
            self._refreshing = None


def _header(token: str) -> dict[str, Any]:
    """What a token says of itself; nothing when it is none."""
    try:
        return jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError, RecursionError):
        return {}


def digest(text: str) -> str:
    """SHA-256, in hex."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def check_fingerprint(claims: Claims, fingerprint: str | None) -> None:
    """A token for one client is no other's: `fingerprint` is what the client says of itself. Raises `Denied`."""
    if claims.fingerprint is None:
        return
    if not hmac.compare_digest(claims.fingerprint.lower().encode(), digest(fingerprint or "").encode()):
        raise Denied("fingerprint")


def bearer(text: str) -> str:
    """A token without the word `Bearer` that may stand before it."""
    word, _, rest = text.strip().partition(" ")
    return rest.strip() if word.lower() == "bearer" else text.strip()


def sign(settings: Settings, claims: dict[str, Any]) -> str:
    """A token that nodes with the same first secret accept."""
    if not settings.jwt_secret:
        raise Invalid("jwt_secret", "set TRUNKLINE_JWT_SECRET to the secret that the nodes verify with")
    return jwt.PyJWT({"enforce_minimum_key_length": False}).encode(claims, settings.jwt_secret[0], algorithm="HS256")


def claims_for(
    settings: Settings, subject: str, workspaces: list[str], ttl: int, *, scope: str | None, agent: str | None
) -> dict[str, Any]:
    """What a token says that nodes with the same settings accept for `ttl` seconds."""
    now = int(time.time())
    optional = {
        settings.claim_scope: scope,
        settings.claim_agent_id: agent,
        "iss": settings.jwt_issuer or None,
        "aud": settings.jwt_audience or None,
    }
    claims: dict[str, Any] = {"sub": subject, settings.claim_workspaces: workspaces, "iat": now, "exp": now + ttl}
    return claims | {name: value for name, value in optional.items() if value is not None}


def _public_key(path: Path) -> tuple[str, Any]:
    """A public key and the one algorithm it is used with."""
    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError) as error:
        raise Invalid("jwt_public_key", f"{path} is no PEM file of a public key") from error
    if isinstance(key, rsa.RSAPublicKey):
        return "RS256", key
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVES:
        return _CURVES[key.curve.name], key
    if isinstance(key, ed25519.Ed25519PublicKey):
        return "EdDSA", key
    raise Invalid("jwt_public_key", f"{path} holds a key of a kind that signs no token")


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=FETCH_SECONDS) as answer:  # noqa: S310 (http or https, by the settings)
        body: bytes = answer.read(1024 * 1024)
        return body
