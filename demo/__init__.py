"""The chat page behind `almosaic demo`; it calls `almosaic.inference` and holds no model code."""
