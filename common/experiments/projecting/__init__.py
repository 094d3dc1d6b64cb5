"""What project_gradients.py is made of: options, the model and the projection, ranges of a store, a trial run."""
