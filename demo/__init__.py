"""The demo world: procedurally drawn scenes, and small models that were trained on them."""
