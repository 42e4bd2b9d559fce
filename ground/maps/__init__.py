"""Vector maps as guidance: read from GeoJSON, brought to the scene's pixels, and drawn as planes."""
