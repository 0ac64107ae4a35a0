"""Where the tables live: rules, plans, and sharding by them, for any module with EmbeddingBagCollections."""
