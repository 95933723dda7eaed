"""The paper's tables and figures: a graph of this project's ordinary stages, and what is read off their numbers."""
