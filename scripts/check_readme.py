"""Compare README's numbers with a run of the demo: `python scripts/check_readme.py demo-output/summary.json`."""

import json
import re
import sys
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text()


def number(pattern: str) -> float:
    """The number that README has where the pattern's group is."""
    match = re.search(pattern, README)
    if not match:
        sys.exit(f"README has no text like {pattern!r}; adapt this check to what README says now")
    return float(match[1].replace(",", ""))


def main(summary_file: str) -> None:
    summary = json.loads(Path(summary_file).read_text())
    first, second = summary["fills"]
    agreement = [100 * reading["agreement"] for reading in summary["readings"].values()]
    alternatives = summary["bytes_alternatives"]
    checks = {
        "bytes a token": (number(r"index included \| (\d+) \|"), summary["bytes_sealed"], 0.1),
        "top-50 JSON lines": (number(r"JSON lines \| ([\d,]+) \|"), alternatives["top_50_json_lines"], 0.02),
        "full bf16 logits": (number(r"full logits in bfloat16 \| ([\d,]+) \|"), alternatives["full_bf16_logits"], 0.0),
        "completions": (number(r"its ([\d,]+) completions"), summary["sequences"], 0.0),
        "agreement of the picture's margins": (number(r"do so in\s+(\d+) %"), agreement[0], 0.05),
        "teacher tokens of the second fill": (0, second["teacher_tokens"], 0.0),
    }
    wrong = [
        f"{name}: README has {written:,}, and the demo measured {measured:,.1f}"
        for name, (written, measured, tolerance) in checks.items()
        if abs(written - measured) > tolerance * abs(measured)
    ]
    # Seconds depend on the machine; that a second fill costs next to nothing does not.
    if second["seconds"] * 20 > first["seconds"]:
        wrong.append(
            f"the second fill took {second['seconds']} s, the first {first['seconds']} s: that is not 20 times less"
        )
    if wrong:
        sys.exit("\n".join(wrong))
    print(f"README's numbers are those of the demo: {len(checks) + 1} were checked")


if __name__ == "__main__":
    main(*sys.argv[1:])
