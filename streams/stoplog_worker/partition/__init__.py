"""One owned partition: its records judged, its state checkpointed."""
