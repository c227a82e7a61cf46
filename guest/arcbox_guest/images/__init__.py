"""OCI images: had by skopeo, unpacked by umoci, kept in a store that all sandboxes share."""
