"""Updates in a spectral basis: Fourier and cosine coefficients, singular values, LDU diagonals."""
