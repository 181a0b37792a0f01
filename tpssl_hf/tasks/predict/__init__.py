"""Apply a finished model to many images: predictions, masks or embeddings."""
