"""Sound that is no model's business: samples and their features, recordings that are read, files that are written."""
