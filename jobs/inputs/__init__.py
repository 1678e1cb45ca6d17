"""Input images: listing, fetching and decoding."""
