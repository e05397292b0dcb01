"""Resident memory of a model that is loaded and let go again and again, against what is set aside for it.

  python -m tests.bench.model_memory FOLDER [--rounds 3]

Prints one JSON line per round: MiB resident before it, with the model loaded, after a prompt, after it has been let go.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ortserve.gateway.fleet.memory import allot, resident_weights
from ortserve.gateway.fleet.opening import FolderOpener
from ortserve.gateway.fleet.spec import ModelSpec
from ortserve.gateway.logs import configure_logs
from ortserve.gateway.options.model import EngineSettings
from ortserve.runtime.config import EngineConfig
from ortserve.runtime.drivers.driver import Driver
from ortserve.runtime.host.heap import trim_heap
from ortserve.runtime.host.threads import share_cores
from ortserve.runtime.model import Model
from ortserve.runtime.request import SamplingParams

MIB = 2**20


def resident() -> float:
    """Of this process, without what lies in files."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    configure_logs("error")

    def unused(*_: object) -> Path:
        raise AssertionError("the folder is exported")

    opener = FolderOpener(unused, share_cores(2, has_engine=True, has_encoders=False))
    options = EngineSettings(allow_unverified=True)
    engine = EngineConfig(max_context=1024, max_rows=4, kv_memory=2**27, prompt_cache_memory=2**26)
    prepared = opener.find(ModelSpec(str(arguments.folder), options=options, engine=engine))
    assert prepared is not None
    allotment = allot(2**34, prepared, [])
    for number in range(arguments.rounds):
        before = resident()
        opened = opener.open(prepared, allotment)
        loaded = resident()
        assert isinstance(opened.driver, Driver)
        prompt = [1 + place % 200 for place in range(900)]
        Model(opened.driver).generate(prompt, SamplingParams(temperature=0, max_tokens=16, ignore_eos=True))
        used = resident()
        opened.close()
        del opened
        trim_heap()
        print(
            json.dumps(
                {
                    "round": number,
                    "before_mib": round(before),
                    "loaded_mib": round(loaded - before),
                    "used_mib": round(used - before),
                    "left_mib": round(resident() - before),
                    "weight_files_mib": round(prepared.weight_bytes / MIB),
                    "weights_mib": round(resident_weights(prepared) / MIB),
                    "allotted_mib": round(allotment.num_bytes / MIB),
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
