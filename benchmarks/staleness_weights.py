"""Draw what an update weighs by its staleness, from the functions that the coordinator uses.

python -m benchmarks.staleness_weights --picture docs/staleness_weights.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from coordinator.staleness import weight
from protos.fedshare.v1 import federation_pb2 as pb

STALENESS_MAX = 30
RULES = {
    "constant": pb.Policy(rule=pb.STALENESS_RULE_CONSTANT),
    "hinge, a = 10, b = 4 (FedAsync)": pb.Policy(rule=pb.STALENESS_RULE_HINGE, a=10, b=4),
    "hinge, a = 0.5, b = 4": pb.Policy(rule=pb.STALENESS_RULE_HINGE, a=0.5, b=4),
    "polynomial, a = 0.5 (FedAsync, FedBuff)": pb.Policy(rule=pb.STALENESS_RULE_POLYNOMIAL, a=0.5),
    "polynomial, a = 1": pb.Policy(rule=pb.STALENESS_RULE_POLYNOMIAL, a=1),
}


def draw(picture: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
    ages = range(STALENESS_MAX + 1)
    for name, rule in RULES.items():
        axes.plot(ages, [weight(rule, age) for age in ages], marker=".", label=name)
    axes.set(xlabel="staleness: versions between base and merge", ylabel="weight", ylim=(0, 1.05))
    axes.legend(frameon=False, fontsize="small")
    figure.savefig(picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picture", type=Path, required=True, help="file to write")
    picture = parser.parse_args().picture
    draw(picture)
    print(f"drawn: {picture}")


if __name__ == "__main__":
    main()
