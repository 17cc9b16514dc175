"""Will a network survive a JVP? What stands in the way, by module, with the way out. This imports no torch."""
