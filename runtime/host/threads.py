"""How the cores are divided among models that may run at the same moment. Knows no session."""

from __future__ import annotations

from dataclasses import dataclass

from ortserve.runtime.errors import ConfigurationError
from ortserve.runtime.host.turn import Turn

ENCODER_SHARE = 4  # encoders get one core in so many beside a model that generates


@dataclass(frozen=True, slots=True)
class Threads:
    """Threads of the engine, and of whichever encoder has its turn."""

    engine: int
    encoders: int


@dataclass(frozen=True, slots=True)
class Cores:
    """What models run with: as many threads as their kind has, while they hold the turn of their kind.

    So many models as there are share the cores: those of one kind run one after another, step by step.
    """

    threads: Threads
    engine_turn: Turn
    encoder_turn: Turn  # the same one where the threads of both together are more than the cores


def share_cores(
    num_cores: int,
    *,
    has_engine: bool,
    has_encoders: bool,
    engine: int | None = None,
    encoders: int | None = None,
    num_processes: int = 0,
) -> Cores:
    """The cores for a server of these kinds of models; a kind that comes later takes turns with the other.

    Raises as `divide_threads` does.
    """
    threads = divide_threads(
        num_cores,
        has_engine=has_engine,
        has_encoders=has_encoders,
        engine=engine,
        encoders=encoders,
        num_processes=num_processes,
    )
    turn = Turn()
    is_divided = has_engine and has_encoders and threads.engine + threads.encoders <= num_cores
    return Cores(threads, turn, Turn() if is_divided else turn)


def divide_threads(
    num_cores: int,
    *,
    has_engine: bool,
    has_encoders: bool,
    engine: int | None = None,
    encoders: int | None = None,
    num_processes: int = 0,
) -> Threads:
    """Divide the cores, so that models running at once never have more threads than there are cores.

    `engine` and `encoders` are the user's wishes. `num_processes` engines divide what encoders leave, a core at least
    for each, and take no turns with them (0: the engine is in this process). Raises `ConfigurationError` when the
    wishes exceed the cores together, or when there is no core for each process and one for encoders. A single core is
    shared.
    """
    if not (has_engine and has_encoders):
        return Threads(engine or num_cores, encoders or num_cores)
    if engine and encoders and engine + encoders > max(num_cores, 2):
        raise ConfigurationError(
            f"--threads {engine} and --encoder-threads {encoders} exceed the {num_cores} cores this process may use:"
            " lower one of them"
        )
    if encoders is None:
        share = min(num_cores // ENCODER_SHARE, num_cores - max(num_processes, 1))
        encoders = max(1, num_cores - engine if engine else share)
    if engine is None:
        engine = max(1, num_cores - encoders)
    if num_processes and (engine < num_processes or engine + encoders > num_cores):
        raise ConfigurationError(
            f"--engines {num_processes} beside encoders needs a core for each engine and {encoders} for encoders, which"
            f" take no turns with them, and of {num_cores} cores {max(min(engine, num_cores - encoders), 0)} are left:"
            " run fewer engines, or encoders in a server of their own"
        )
    return Threads(engine, encoders)
