"""How the contracts let hypothesis look for a legal order of calls that breaks a law. Knows no law."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hypothesis.stateful import RuleBasedStateMachine


def check_laws(
    machine: type[RuleBasedStateMachine], *, max_examples: int, num_steps: int, shrinks: bool, is_random: bool = True
) -> None:
    """Run a machine for so many examples of so many steps. Raises what the machine does, in the shortest example.

    Not `shrinks`: in the first one that was found. Not `is_random`: the same examples every time.
    """
    from hypothesis import HealthCheck, Phase, settings
    from hypothesis.stateful import run_state_machine_as_test

    phases = [Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink]
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=max_examples,
            stateful_step_count=num_steps,
            derandomize=not is_random,
            deadline=None,
            print_blob=True,
            report_multiple_bugs=False,
            phases=phases if shrinks else phases[:-1],
            suppress_health_check=list(HealthCheck),
        ),
    )
