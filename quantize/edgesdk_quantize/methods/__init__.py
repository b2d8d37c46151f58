"""How a matrix becomes codes: grids, rounding by second moments, and choices of formats."""
