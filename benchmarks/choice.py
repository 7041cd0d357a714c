"""Does it pay to choose neighbours by similarity? What each measure says of voters, against what they came to.

    python -m benchmarks.choice benchmarks/plans/zoo-size.yaml

Takes the rows of the study in which three entries vote that were chosen in different ways (the nearest, those of
each further fifth, by lot), and says of each three how similar LEEP and WordNet found them to the target.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.plan import HERE, Study
from benchmarks.rows import study_rows
from mvp_edge.runs.rundir import machine, versions
from mvp_edge_export.storage import write_json

CHOSEN = ("mvp@20", *(f"mvp@20-fifth-{n}" for n in range(2, 6)), "mvp@20-by-lot")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("plan", type=Path)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    study = Study.open(options.plan)
    found = study_rows(study.plan["study"])
    rows: list[dict[str, Any]] = []
    for task in study.tasks:
        own = found.get(task.name, {})
        meanings = study.ranking(task, study.entries(task), "wordnet")
        wordnet = {one.task: one.score for one in meanings.candidates}
        for name in CHOSEN:
            if name not in own:
                continue
            voters = own[name]["neighbours"]
            rows.append(
                {
                    "target": task.name,
                    "variant": name,
                    "accuracy": own[name]["accuracy"],
                    "leep": float(np.mean([one["score"] for one in voters])),
                    "wordnet": float(np.mean([wordnet[one["task"]] for one in voters])),
                    "leep_seconds": own[name]["similarity_seconds"],
                    "leep_flops": own[name]["similarity_flops"],
                    "wordnet_seconds": meanings.seconds,
                }
            )
        print(task.name, len(rows), flush=True)
    facts = {"schema": 1, "machine": machine(), "versions": versions(), "rows": rows}
    write_json(HERE / "results" / "choice.json", facts)


if __name__ == "__main__":
    main()
