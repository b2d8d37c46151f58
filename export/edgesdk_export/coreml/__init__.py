"""Write a decoder as a Core ML package, without torch, and compute what the package says."""
