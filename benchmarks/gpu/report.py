"""Which figures a run has to reach, and what of a run on the stand-in may be shown.

Invariant: what was not measured is null, and judged as not measured.
"""

from __future__ import annotations

from typing import Any

from benchmarks.common.targets import Target

TARGETS = (
    Target("encode_bf16", "encode bf16: share of the device's memory bandwidth", 0.6, 0.8),
    Target("copies_out", "copies to the host: share of the page-locked bandwidth", 0.8, 0.95),
    Target("copies_in", "copies to the device: share of the page-locked bandwidth", 0.8, 0.95),
)
_TIMES = ("_ms", "_per_s", "share_out", "share_in", "share_not_hidden", "share_of_copy")


def blanked(found: Any) -> Any:
    """The same without times and rates."""
    if isinstance(found, dict):
        return {key: None if key.endswith(_TIMES) else blanked(value) for key, value in found.items()}
    return list(map(blanked, found)) if isinstance(found, list) else found


def judged(found: dict[str, Any]) -> list[dict[str, Any]]:
    copies = found.get("copies", {})
    values = {
        "encode_bf16": _encode(found),
        "copies_out": copies.get("share_out"),
        "copies_in": copies.get("share_in"),
    }
    return [target.judged(values[target.name]) for target in TARGETS]


def _encode(found: dict[str, Any]) -> float | None:
    """Of the bandwidth that the memory's clock gives, which no copy reaches; else of a copy within the device."""
    codecs = found.get("codecs")
    if codecs is None:
        return None
    (row,) = [row for row in codecs["rows"] if row["kernel"] == "encode_bf16"]
    if row["gb_per_s"] is None:
        return None
    bandwidth = found["device"]["memory_gb_per_s_by_its_clock"] or codecs["copy_within_the_device_gb_per_s"]
    return float(row["gb_per_s"] / bandwidth)
