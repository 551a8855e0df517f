"""The weight multiplied by an orthogonal matrix: lengths and angles between neurons stay."""
