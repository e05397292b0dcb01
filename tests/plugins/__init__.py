"""Tests of plugins; a package so that files may share names with other folders' tests."""
