"""Wrong code and its correct neighbours, in the styles of public code: what the checks of the kit are checked on."""
