"""Fill in the evidence pages, their tables and summary.json from the committed rows.

python -m benchmarks.report            writes them
python -m benchmarks.report --check    fails if what is committed differs from what the rows say
"""

import argparse
import sys

from benchmarks.report.pages import ROOT, Evidence


def main() -> None:
    arguments = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    arguments.add_argument(
        "--check", action="store_true", help="write nothing; fail if a file differs"
    )
    check = arguments.parse_args().check
    evidence = Evidence()
    wanted = evidence.files()
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    if check and stale:
        names = ", ".join(str(path.relative_to(ROOT)) for path in stale)
        sys.exit(f"differ from the committed rows: {names}: run `make figures`")
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(wanted[path])
    state = f"{len(stale)} files written" if stale else "all files as the rows say"
    print(f"{len(evidence.figures)} figures, {state}")


if __name__ == "__main__":
    main()
