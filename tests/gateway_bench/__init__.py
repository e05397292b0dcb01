"""Tests of the load generator, the doctor and the host's facts."""
