"""Whether a killed and resumed training ends with the same bits, tried."""
