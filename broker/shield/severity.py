"""How bad it would have been: from what was tried, and from which of the policy's lists forbade it.

    forbidden by                    read, connect    write, execute, command
    no entry of an allowed list     low              medium
    a blocked entry                 medium           high
    nobody: it cannot be judged     high             high

*Critical*, whatever forbade it, is what would give away or destroy the machine: reading or changing credentials,
changing or replacing what belongs to the system, a command that wipes, stops or takes over, and the address at which
clouds hand out credentials.
"""

from typing import Literal

from .actions import Action, Command, Network, Read
from .finding import Finding
from .patterns import Pattern

Severity = Literal["low", "medium", "high", "critical"]

_SECRETS = Pattern(
    r"(?i)(?:^|/)(?:\.ssh|\.gnupg|\.aws|\.azure|\.kube|\.docker|\.netrc|\.pgpass|\.git-credentials|\.password-store|"
    r"\.vault-token|id_(?:rsa|dsa|ecdsa|ed25519))(?:/|$)|^/etc/(?:g?shadow|sudoers|ssl/private)|"
    r"^/proc/[^/]+/environ$|\.(?:pem|key|p12|pfx|kdbx)$|(?:^|/)\.env(?:\.[^/]*)?$"
)
_SYSTEM = Pattern(
    r"(?i)^/(?:$|etc|root|boot|bin|sbin|lib|lib32|lib64|usr|dev|proc|sys|system|library|private/etc)(?:/|$)"
)
_DESTROYS = [
    Pattern(text)
    for text in (
        # Wipes the root, a home, or a whole directory of the system.
        r"\b(?:rm|shred|srm)\s(?:[^\n;&|]*\s)?(?:/|/\*|~/?|\$HOME/?|/(?:etc|root|home|usr|var|bin|boot|lib|sys|dev)(?:/\*?)?)"
        r"(?:\s|$|[;&|])",
        r"\bfind\s+(?:/|~)\s[^\n]*-delete\b",
        r"\bmkfs\b|\bwipefs\b|\bdd\s[^\n]*\bof=/dev/|>\s*/dev/(?:sd|hd|vd|nvme|disk|mem)",
        r"\bch(?:mod|own)\s[^\n]*\s/(?:\*|etc\S*)?(?:\s|$)",
        # Stops the machine.
        r"(?:^|[\s;&|/])(?:shutdown|reboot|halt|poweroff)(?:\s|$|[;&|])|:\(\)\s*\{",
        # Becomes somebody else, or runs what a stranger sends.
        r"(?:^|[\s;&|/])(?:sudo|doas|su|pkexec)(?:\s|$)",
        r"\b(?:curl|wget|base64)\b[^\n]*\|\s*(?:\S*/)?(?:sudo\s+)?(?:ba|da|z|k)?sh\b|/dev/(?:tcp|udp)/",
    )
]
_METADATA = {b"169.254.169.254", b"fd00:ec2::254", b"metadata.google.internal"}


def judge(action: Action, finding: Finding) -> Severity:
    """By the table above."""
    if _is_critical(action, finding.texts):
        return "critical"
    if finding.why == "unreadable":
        return "high"
    is_passive = isinstance(action, Read | Network)
    if finding.why == "blocked":
        return "medium" if is_passive else "high"
    return "low" if is_passive else "medium"


def _is_critical(action: Action, texts: list[bytes]) -> bool:
    if isinstance(action, Command):
        return any(pattern.is_in(text) for pattern in _DESTROYS for text in texts)
    if isinstance(action, Network):
        return not _METADATA.isdisjoint(texts)
    return any(_SECRETS.is_in(text) or (not isinstance(action, Read) and _SYSTEM.is_in(text)) for text in texts)
