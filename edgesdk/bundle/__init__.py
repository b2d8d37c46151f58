"""Open bundles, check them, write them."""
