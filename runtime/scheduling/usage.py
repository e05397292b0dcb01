"""What a request has used, read off its sequence. Changes nothing."""

from __future__ import annotations

from ortserve.runtime.request import Usage
from ortserve.runtime.sequence import Sequence


def usage_of(sequence: Sequence, now_s: float) -> Usage:
    """As of now; times are seconds since it was submitted."""
    begun = now_s if sequence.first_run_s is None else sequence.first_run_s
    first = now_s if sequence.first_token_s is None else sequence.first_token_s
    return Usage(
        num_prompt_tokens=sequence.num_prompt_tokens,
        num_cached_tokens=sequence.num_reused,
        num_cache_write_tokens=sequence.num_written,
        num_output_tokens=sequence.num_output_tokens,
        num_accepted_tokens=sequence.num_accepted,
        num_rejected_tokens=sequence.num_rejected,
        num_preemptions=sequence.num_preemptions,
        queue_s=begun - sequence.arrived_s,
        time_to_first_token_s=first - sequence.arrived_s,
        total_s=now_s - sequence.arrived_s,
    )
