"""Copy on step: the state of one moment while training goes on."""
