"""A benchmark as web pages: results, figures, and its cases in 3D."""
