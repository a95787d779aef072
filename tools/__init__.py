"""What only maintainers run: generated parts of the README and docs, the dry run of the paper profile, packing finished runs."""
