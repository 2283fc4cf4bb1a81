"""The shape of params.yaml: typed, frozen, unknown keys refused; no field has a default, all stands in the file."""
