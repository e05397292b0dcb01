"""The contracts of plugins as tests to inherit. Knows no engine: it plays one."""
