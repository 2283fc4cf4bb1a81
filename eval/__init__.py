"""The measures. Import from a module (`from eval.fid import ...`): `eval` alone is a builtin's name."""
