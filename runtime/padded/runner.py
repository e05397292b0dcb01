"""Runs a Step through a graph that another exporter made: rows in padded groups, keys and values copied in and out.

Slower than a graph of our own: what a row stores is copied before and after every run, and logits are computed for
every token. Knows tokens and slots, no requests' lives.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ortserve.runtime.manifest import Manifest
from ortserve.runtime.padded.batch import Group, PaddedBatch, build_padded_batch, form_groups
from ortserve.runtime.padded_graph import PaddedGraph
from ortserve.runtime.session import Binding, Session
from ortserve.runtime.slots.kv import SlotKvStore
from ortserve.runtime.step import Step

Floats = npt.NDArray[np.float32]


class PaddedRunner:
    """One model on the CPU whose graph takes stored keys and values as inputs and gives longer ones back."""

    def __init__(self, manifest: Manifest, session: Session, store: SlotKvStore, *, max_logit_rows: int) -> None:
        assert manifest.padded is not None, "only imported graphs are run this way"
        self._graph: PaddedGraph = manifest.padded
        self._session = session
        self._store = store
        self._layout = manifest.kv
        self._vocab_size = manifest.vocab_size
        self._floats = np.dtype(self._graph.floats)
        self._logits = np.empty((max_logit_rows, manifest.vocab_size), np.float32)

    def run(self, step: Step) -> Floats:
        """Execute the step; returns logits [step.num_logits, vocab], valid until the next run."""
        self._store.apply(step.moves)
        firsts = np.cumsum([0, *(row.num_logits for row in step.rows)]).tolist()
        for group in form_groups(step.rows, self._graph, vocab_size=self._vocab_size):
            logits = self._run_group(group)
            for found, row, place in zip(logits, group.rows, group.places, strict=True):
                end = len(row.tokens) - row.num_silent
                self._logits[firsts[place] : firsts[place] + row.num_logits] = found[end - row.num_logits : end]
        return self._logits[: step.num_logits]

    def _run_group(self, group: Group) -> npt.NDArray[np.floating]:
        """Logits `[B, S, vocab]`; what the rows' new tokens store goes back to their slots."""
        batch = build_padded_batch(group, self._graph)
        binding = self._session.binding()
        self._bind_tokens(binding, batch)
        num_places = batch.attention_mask.shape[1]
        shape = (len(group.rows), self._layout.num_kv_heads, num_places, self._layout.head_dim)
        present: list[npt.NDArray[np.floating]] = []
        for index, (past, name) in enumerate(self._kv_names()):
            binding.bind_input(past, self._past(index, group, batch))
            present.append(np.empty(shape, self._floats))
            binding.bind_output(name, present[-1])
        logits = np.empty((*batch.input_ids.shape, self._vocab_size), self._graph.logit_floats)
        binding.bind_output(self._graph.logits, logits)
        binding.run()
        for index, stored in enumerate(present):
            for number, (row, begin) in enumerate(zip(group.rows, batch.new_begins, strict=True)):
                new = stored[number, :, begin : begin + len(row.tokens)]
                self._store.span(index, row.slot)[:, row.start : row.end] = new
        return logits

    def _bind_tokens(self, binding: Binding, batch: PaddedBatch) -> None:
        graph = self._graph
        binding.bind_input(graph.input_ids, batch.input_ids)
        if graph.attention_mask is not None:
            binding.bind_input(graph.attention_mask, batch.attention_mask)
        if graph.position_ids is not None:
            binding.bind_input(graph.position_ids, batch.position_ids)
        if graph.last_places is not None:
            binding.bind_input(graph.last_places, batch.last_places)
        if graph.total_length is not None:
            length = np.array(batch.attention_mask.shape[1], np.int32)
            binding.bind_input(graph.total_length, length.reshape((1,) * graph.total_length_rank))

    def _past(self, index: int, group: Group, batch: PaddedBatch) -> npt.NDArray[np.floating]:
        """What the rows store, `[B, kv_heads, P, head_dim]`; zeros are padding."""
        shape = (len(group.rows), self._layout.num_kv_heads, group.num_past, self._layout.head_dim)
        past = np.zeros(shape, self._floats)
        for number, (row, begin) in enumerate(zip(group.rows, batch.past_begins, strict=True)):
            past[number, :, begin : begin + row.start] = self._store.span(index, row.slot)[:, : row.start]
        return past

    def _kv_names(self) -> Iterator[tuple[str, str]]:
        """Past and present of every tensor, in the store's order."""
        graph = self._graph
        for layer in range(self._layout.num_layers):
            yield graph.past_key.format(layer=layer), graph.present_key.format(layer=layer)
            yield graph.past_value.format(layer=layer), graph.present_value.format(layer=layer)
