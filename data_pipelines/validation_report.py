"""A validation report for people, as lines, and for programs, as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from data_pipelines.checks import GENERAL_REMEDY, REMEDIES
from data_pipelines.tally import Tally, lines_of
from data_pipelines.validation import Findings, ValidationReport

REPORT_FORMAT = "osprey_tp validation 1"
_LONGEST_BAR = 30


def as_json(report: ValidationReport, name: str, left_out: Tally | None = None) -> dict[str, Any]:
    """The report as a JSON object; `left_out` is what `prepare` would leave out of a file."""
    return {
        "format": REPORT_FORMAT,
        "validated": name,
        "purpose": report.purpose,
        "usable": not report.problems,
        "records": report.records,
        "regions": report.regions,
        "pictures": report.pictures,
        "problems": _findings(report.found),
        "warnings": _findings(report.noticed),
        "left_out": dict(left_out or {}),
        "lengths": report.lengths,
        "language": report.language,
        "region_figures": report.regions_summary,
    }


def _findings(findings: Findings) -> dict[str, Any]:
    return {
        reason: {**entry, "example": findings.examples[reason], "remedy": REMEDIES.get(reason, GENERAL_REMEDY)}
        for reason, entry in sorted(findings.tally.items())
    }


def as_lines(report: ValidationReport, name: str, left_out: Tally | None = None) -> list[str]:
    """The report for people."""
    lines = [f"{name}: {report.records} records, {report.regions} regions, {report.pictures} pictures"]
    lines += [f"  left out: {line}" for line in lines_of(left_out or {})]
    lines += _figures(report)
    for kind, findings in (("problem", report.found), ("warning", report.noticed)):
        for line, (reason, _) in zip(lines_of(findings.tally), sorted(findings.tally.items()), strict=True):
            lines.append(f"  {kind}: {line}")
            if findings.examples[reason]:
                lines.append(f"    for example: {findings.examples[reason]}")
            lines.append(f"    what to do: {REMEDIES.get(reason, GENERAL_REMEDY)}")
    lines.append(f"  something would break {report.purpose}" if report.problems else "  no problem found")
    return lines


def _figures(report: ValidationReport) -> Iterator[str]:
    for kind in ("questions", "answers"):
        yield from _language(kind, report.language[kind])
    if report.language["own_questions"]:
        yield f"  own questions of the source, worded by the prompts: {report.language['own_questions']}"
    if report.language["text_only_records"]:
        yield f"  records of text alone: {report.language['text_only_records']}"
    regions = report.regions_summary
    if regions["count"]:
        many = regions["per_picture"]
        yield f"  regions a picture: mean {many['mean']:.1f}, median {many['percentile_50']}, most {many['most']}"
        sizes = ", ".join(f"{count} {name}" for name, count in regions["sizes"].items())
        yield f"  regions by area: {sizes} (COCO's sizes: below 32², below 96² pixels, above)"
    if report.lengths is not None:
        yield from _lengths(report.lengths)


def _language(kind: str, figures: Mapping[str, Any]) -> Iterator[str]:
    if not figures["count"]:
        return
    yield (
        f"  {kind}: {figures['count']}, {figures['mean_words']:.1f} words on average, "
        f"{_percent(figures['distinct_share'])} distinct, "
        f"{_percent(figures['non_ascii_letter_share'])} of the letters beyond ASCII{_scripts(figures['scripts'])}"
    )
    frequent = (f"{entry['text']!r} {_percent(entry['share'])}" for entry in figures["most_frequent"][:3])
    yield f"    most frequent: {', '.join(frequent)}"


def _scripts(scripts: Mapping[str, int]) -> str:
    return f" ({', '.join(list(scripts)[:3])})" if scripts else ""


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _lengths(lengths: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"  tokens a sample: median {lengths['percentile_50']}, 95% up to {lengths['percentile_95']}, 99% up to "
        f"{lengths['percentile_99']}, longest {lengths['most']} ({lengths['longest_record']}); the limit is "
        f"{lengths['limit']}"
    )
    kinds = lengths["mean_tokens"]
    yield (
        f"    on average {kinds['visual']:.0f} visual, {kinds['regions']:.1f} of regions, {kinds['text']:.0f} of text; "
        f"{kinds['answers']:.0f} are learned"
    )
    highest = max(bar["samples"] for bar in lengths["histogram"])
    width = len(str(lengths["most"]))
    for bar in lengths["histogram"]:
        drawn = "█" * -(-_LONGEST_BAR * bar["samples"] // highest)
        yield f"    {bar['from']:>{width}}-{bar['to']:<{width}} {drawn} {bar['samples']}"
