"""Which operation of a step first produced a non-finite value, and why."""
