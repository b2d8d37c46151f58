"""What runs a model: engines behind one seam, `edgesdk.engines.base`."""
