"""Compare README's numbers with a run of the demo: `python scripts/check_readme.py demo-output/summary.json`."""

import json
import re
import subprocess
import sys
from pathlib import Path

from tvkd.demo.pairs import pairs_file
from tvkd.demo.teacher import teacher_directory
from tvkd_client.margins import READINGS

README = (Path(__file__).parent.parent / "README.md").read_text()


def number(pattern: str) -> float:
    """The number that README has where the pattern's group is."""
    match = re.search(pattern, README)
    if not match:
        sys.exit(f"README has no text like {pattern!r}; adapt this check to what README says now")
    return float(match[1].replace(",", ""))


def agreement_of_readings(store: Path, teacher: str) -> list[float]:
    """In how many of 100 pairs each reading of the values alone agrees with the label; the paper's is the first."""
    flags = ["--dataset", pairs_file(), "--tokenizer", teacher_directory(), "--store", store, "--teacher-id", teacher]
    command = [sys.executable, "-m", "tvkd.cli", "preview", "--json", *map(str, flags)]
    readings = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)["readings"]
    return [100 * readings[name]["agreement"] for name in READINGS]


def main(summary_file: str) -> None:
    summary = json.loads(Path(summary_file).read_text())
    first, second = summary["fills"]
    agreement = agreement_of_readings(Path(summary_file).parent / "store", summary["teacher_id"])
    alternatives = summary["bytes_alternatives"]
    checks = {
        "bytes a token": (number(r"index included \| (\d+) \|"), summary["bytes_sealed"], 0.1),
        "top-50 JSON lines": (number(r"JSON lines \| ([\d,]+) \|"), alternatives["top_50_json_lines"], 0.02),
        "full bf16 logits": (number(r"full logits in bfloat16 \| ([\d,]+) \|"), alternatives["full_bf16_logits"], 0.0),
        "completions": (number(r"its ([\d,]+) completions"), summary["sequences"], 0.0),
        "agreement of the picture's margins": (number(r"do so in\s+(\d+) %"), agreement[0], 0.05),
        "agreement of the best reading": (number(r"readings of the values in up to (\d+) %"), max(agreement), 0.05),
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
