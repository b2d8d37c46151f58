"""Find the codes of a matrix: grids, rounding by second moments, and choices of formats."""
