"""Is the guidance in a loss's target what it is meant to be? On top of the probe of ``kit.loss``."""
