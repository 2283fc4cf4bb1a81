"""The stages that train, and the check of what any stage is given. They need the suite's pipeline; the library does not."""
