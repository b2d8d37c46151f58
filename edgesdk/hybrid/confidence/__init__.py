"""How sure an answer of the device is, and how sure it has to be."""
