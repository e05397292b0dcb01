"""Runs a Step on a device: moves KV blocks, sends the packed rows, enqueues the model. Knows no requests' lives.

Nothing waits for the device here but a step without logits: the sampler enqueues its own work behind the model's and
waits once for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ortserve.runtime.devices.device import Device, Strided
from ortserve.runtime.devices.recordings import Recordings
from ortserve.runtime.devices.session import DeviceBinding, DeviceSession
from ortserve.runtime.manifest import Manifest
from ortserve.runtime.pages.batch import LONGEST_SPREAD, ROOM_FOR_PADDING, Bounds, PagedBatch, build_paged_batch
from ortserve.runtime.pages.kv import PagedKvStore
from ortserve.runtime.pages.staging import Staging, staged_bytes
from ortserve.runtime.plan import EnginePlan
from ortserve.runtime.step import Step

MANY_TOKENS = 128  # of a step: beyond them, matrices in codes had better become floats first
READ_AGAIN_BYTES = 6 << 30  # a millisecond and a half of a fast GPU: what a step of ragged rows takes longer
_TYPES = {"input_ids": "int64", "position_ids": "int64", "logit_index": "int64"}  # others are int32


@dataclass(frozen=True, slots=True)
class DeviceLogits:
    """Logits that a device is computing: [rows, vocab] float32 at `address`, of which the first `num_rows` count."""

    address: int
    num_rows: int
    num_padded_rows: int
    chosen: tuple[int, ...] | None = None  # only these of them, in this order; None: all that count

    def __getitem__(self, rows: slice | list[int]) -> DeviceLogits:
        """Some of the rows, as of an array."""
        every = range(self.num_rows)
        return replace(self, chosen=tuple(every[rows] if isinstance(rows, slice) else rows))


class PagedRunner:
    """One model on a device with its KV pages bound in place.

    A step of few tokens has one of a few shapes. The first of a shape runs as it is; the second is recorded, and
    from then on the whole model is launched at once. `single` and `many` are the same model with other kernels for
    matrices in codes, for steps of one token and of more than `MANY_TOKENS`.
    """

    def __init__(
        self,
        manifest: Manifest,
        session: DeviceSession,
        store: PagedKvStore,
        device: Device,
        plan: EnginePlan,
        *,
        single: DeviceSession | None = None,
        many: DeviceSession | None = None,
    ) -> None:
        self._store = store
        self._device = device
        self._plan = plan
        self._vocab_size = manifest.vocab_size
        self._width = plan.capacity // plan.block_size
        self._max_rows = most_logit_rows(plan)
        again = READ_AGAIN_BYTES * plan.block_size // plan.bytes_per_block
        self._bounds = Bounds(plan.num_rows, self._width, self._max_rows, again)
        max_tokens = plan.max_chunk_tokens + self._max_rows * 2
        self._staging = Staging(
            device,
            staged_bytes(*[8 * max_tokens] * 3, *[4 * (max_tokens + 1)] * 3, 4 * self._max_rows * self._width),
        )
        self._logits = device.allocate(self._max_rows * manifest.vocab_size * 4)
        self._binding = _bound(session, store)
        self._single_binding = self._binding if single is None else _bound(single, store)
        self._many_binding = self._binding if many is None else _bound(many, store)
        self.recordings: Recordings[tuple[int, int, int, int]] = Recordings(device)
        self._seen_chunks: set[int] = set()  # bits of their numbers of tokens
        self.was_unusual = False
        self.longest_short = LONGEST_SPREAD

    def run(self, step: Step) -> DeviceLogits:
        """Enqueue the step; returns its logits, valid until the next run."""
        self._store.apply(step.moves)
        if not step.rows:
            self._device.synchronize()
            return DeviceLogits(self._logits, 0, 0)
        batch = self.prepare(step)
        self._enqueue(batch)
        if step.num_logits == 0:
            self._device.synchronize()  # nobody else will, and the next step overwrites what this one reads
        return DeviceLogits(self._logits, step.num_logits, len(batch.logit_index))

    def prepare(self, step: Step) -> PagedBatch:
        """The arrays of a step. Part of `PreparingRunner`."""
        return build_paged_batch(step, self._bounds, block_size=self._plan.block_size)

    def launch(self, prepared: PagedBatch, tokens: Sequence[int]) -> DeviceLogits:
        """Enqueue a step of plain decodes with these tokens. Part of `PreparingRunner`."""
        assert prepared.is_decode, "only plain decodes are known but for their tokens"
        prepared.input_ids[: len(tokens)] = tokens
        self._enqueue(prepared)
        return DeviceLogits(self._logits, len(tokens), len(prepared.logit_index))

    def launch_behind(self, prepared: PagedBatch, address: int, num_rows: int) -> DeviceLogits:
        """The same with tokens that will lie at `address` on the device. Part of `PreparingRunner`."""
        assert prepared.is_decode, "only plain decodes are known but for their tokens"
        self._enqueue(prepared, Strided(address, 8 * num_rows))
        return DeviceLogits(self._logits, num_rows, len(prepared.logit_index))

    def settle(self) -> None:
        """Part of `PreparingRunner`."""
        self._device.synchronize()

    def _enqueue(self, batch: PagedBatch, tokens: Strided | None = None) -> None:
        arrays = {name: getattr(batch, name) for name in _INPUTS}
        addresses = self._staging.send(arrays)
        if tokens is not None:
            self._device.copy(Strided(addresses["input_ids"], tokens.pitch), tokens, width=tokens.pitch, height=1)
        self.was_unusual = False
        if batch.is_spread and self.recordings.launch(batch.shape):
            return
        binding = self._binding_for(len(batch.input_ids))
        for name, address in addresses.items():
            binding.bind_input(name, address, _TYPES.get(name, "int32"), arrays[name].shape)
        binding.bind_host_input("attention_bounds", batch.attention_bounds)
        shape = (len(batch.logit_index), self._vocab_size)
        binding.bind_output("logits", self._logits, "float32", shape)
        if batch.is_spread:
            self.was_unusual = self.recordings.run(batch.shape, binding.run)
        else:
            size = len(batch.input_ids).bit_length()
            self.was_unusual = size not in self._seen_chunks  # kernels may be chosen, and memory taken
            self._seen_chunks.add(size)
            binding.run()

    def _binding_for(self, num_tokens: int) -> DeviceBinding:
        if num_tokens == 1:
            return self._single_binding
        return self._many_binding if num_tokens > MANY_TOKENS else self._binding


def most_logit_rows(plan: EnginePlan) -> int:
    """Rows of logits that a step may have, padding included."""
    return plan.max_logit_rows + ROOM_FOR_PADDING


def _bound(session: DeviceSession, store: PagedKvStore) -> DeviceBinding:
    """A binding that reads and writes the stored keys and values in place."""
    binding = session.binding()
    for tensor in store.tensors():
        binding.bind_input(f"past.{tensor.name}", tensor.address, tensor.dtype, tensor.shape)
        binding.bind_output(f"present.{tensor.name}", tensor.address, tensor.dtype, tensor.shape)
    return binding


_INPUTS = (
    "input_ids",
    "position_ids",
    "logit_index",
    "cumulative_lengths",
    "past_lengths",
    "slot_mapping",
    "page_table",
)
