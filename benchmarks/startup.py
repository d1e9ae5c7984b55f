"""Start-up: what importing the package costs over importing what it stands on, and how long help takes.

python benchmarks/startup.py
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from timing import interleaved, save, table

CONTENDERS = {
    "import lightning, torchvision": ["-c", "import lightning, torchvision"],
    "import lightning_biaskd": ["-c", "import lightning_biaskd"],
    "import all of it, data and callbacks too": ["-c", "import lightning_biaskd.command_line.parser"],
    "biaskd --help": ["-m", "lightning_biaskd", "--help"],
    "biaskd fit --help": ["-m", "lightning_biaskd", "fit", "--help"],
}


def run() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()

    def start(words: list[str]) -> None:
        subprocess.run([sys.executable, *words], check=True, capture_output=True)

    times = interleaved({name: lambda words=words: start(words) for name, words in CONTENDERS.items()}, args.rounds, 1)
    base = times["import lightning, torchvision"]
    rows = [[name, f"{taken:.2f}", f"{taken / base:.2f}"] for name, taken in times.items()]
    head = ["process", "seconds, median", "over the first"]
    save("startup", "python benchmarks/startup.py", {"seconds": times}, table(head, rows))


if __name__ == "__main__":
    run()
