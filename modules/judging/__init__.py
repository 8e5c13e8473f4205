"""What is measured of an edit, an inversion or a model, and how it is shown."""
