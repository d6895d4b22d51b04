"""A commit's manifest: one JSON object that binds everything an increment changed. Storing it is the commit.

``parts`` and ``facts`` are the state; the state digest covers both. ``envelope`` holds what may differ between two runs
that are otherwise equal to the byte (epoch, wall times), and stays outside the digest.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from headrace.errors import StoreError
from headrace.store.store import PartRef

Verdict = Literal["publish", "hold", "reject"]


@dataclass(frozen=True)
class Envelope:
    """What is known about a commit beside its state. Made by the committing rank; read by reports and fences."""

    epoch: int
    token: str
    wall_ms: int
    monotonic_s: float
    """When the marker was about to be written, on the host's monotonic clock."""
    seconds: Mapping[str, float]
    """Where the increment's time went: feed, score, train, gate, commit."""
    cpu_s: Mapping[str, float] = field(default_factory=dict)
    """The same, of the CPU time of the process that committed it."""


@dataclass(frozen=True)
class Manifest:
    """One commit. Made by train/committer.py, stored by commit/chain.py; read by resume, bundles and reports."""

    cut: int
    """The increment, and the ledger's position."""
    parent: str | None
    """State digest of the commit before."""
    verdict: Verdict
    reason: str
    """The verdict in words."""
    version: int | None
    """Of the bundle that this commit publishes; None where it does not."""
    parts: Mapping[str, PartRef]
    facts: Mapping[str, Any]
    """Plain JSON: model, sizes, watermark, counters, metrics of the increment, blend weights, gate state."""
    envelope: Envelope

    @property
    def state_digest(self) -> str:
        """sha256 over everything that can influence a later commit."""
        state = [self.cut, self.parent, self.verdict, self.reason, self.version, _plain(self.parts), self.facts]
        return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()

    def folder(self, prefix: str) -> dict[str, PartRef]:
        """The parts under ``prefix/``, by the rest of their names."""
        return {name[len(prefix) + 1 :]: ref for name, ref in self.parts.items() if name.startswith(prefix + "/")}

    def to_json(self) -> bytes:
        """What is stored, with the digest for readers to check."""
        content = {
            "cut": self.cut,
            "parent": self.parent,
            "verdict": self.verdict,
            "reason": self.reason,
            "version": self.version,
            "state_digest": self.state_digest,
            "facts": self.facts,
            "parts": _plain(self.parts),
            "envelope": self.envelope.__dict__,
        }
        return json.dumps(content, indent=1).encode()

    @classmethod
    def from_json(cls, content: bytes) -> "Manifest":
        """The manifest stored as ``content``; StoreError where its digest does not match."""
        raw = json.loads(content)
        manifest = cls(
            raw["cut"],
            raw["parent"],
            raw["verdict"],
            raw["reason"],
            raw["version"],
            {name: PartRef(sha256, size) for name, (sha256, size) in raw["parts"].items()},
            raw["facts"],
            Envelope(**raw["envelope"]),
        )
        if manifest.state_digest != raw["state_digest"]:
            raise StoreError(f"the manifest of commit {raw['cut']} does not match its own digest: it is damaged")
        return manifest


def _plain(parts: Mapping[str, PartRef]) -> dict[str, list[str | int]]:
    return {name: [ref.sha256, ref.size_bytes] for name, ref in parts.items()}
