"""What replaces a layer, as a value: stages, their geometry, composing back, counting."""
