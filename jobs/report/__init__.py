"""Pages for people: an audit of a store, and a comparison of two. Files that open from disk, without a server."""
