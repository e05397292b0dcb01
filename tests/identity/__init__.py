"""The equalities on the trained model: batched = alone, chunked = whole, preempted = not, forked = plain."""
