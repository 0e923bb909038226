"""Pure: what people write in the conflist, read strictly (plugin) and described (pydantic)."""
