"""Tests of drafters; a package so that files may share names with other folders' tests."""
