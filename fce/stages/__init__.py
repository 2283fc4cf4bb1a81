"""The stages that train, and the check of what any stage is given; they need the pipeline, the library does not."""
