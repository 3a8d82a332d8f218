"""The paper's tables and figures, from cells to pages."""
