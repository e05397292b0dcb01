"""Seconds from process start to the first 200 of /health, for a model that is already exported.

python -m tests.bench.startup --json out.json
"""

from __future__ import annotations

import sys

from tests.bench.measurement import Goal, finish, script_parser, serving, spread


def main() -> int:
    parser = script_parser(__doc__ or "")
    parser.add_argument("model", nargs="?", metavar="MODEL", help="exported folder (default: the bundled model)")
    parser.add_argument("--at-most", type=float, default=3.0, help="seconds (default %(default)g)")
    parser.set_defaults(rounds=7)
    arguments = parser.parse_args()
    words = [] if arguments.model is None else [arguments.model]
    seconds: list[float] = []
    with serving(*words, limit_s=600):  # not counted: may export on first use, and warms the file cache
        pass
    for _ in range(arguments.rounds):
        with serving(*words) as server:
            seconds.append(server.ready_s)
    print("seconds to ready:", ", ".join(f"{value:.2f}" for value in seconds))
    goal = Goal("seconds to ready", spread(seconds), at_most=arguments.at_most)
    return finish(arguments, [goal], {"seconds": seconds})


if __name__ == "__main__":
    sys.exit(main())
